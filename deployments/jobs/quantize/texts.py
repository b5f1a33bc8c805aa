"""What the walk reads: sequences to calibrate with, and windows to measure on, before and after."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deployments.jobs.failures import JobError, usable
from deployments.jobs.files.storage import reading
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.model.tokenizer import Tokenizer
from tools.builtin_model.evaluate import Window, sliding_windows


@dataclass(frozen=True, slots=True)
class Texts:
    """Token ids. calibration: [sequences, tokens]. held_out: one stream, from the end-of-text token on. windows: of it, each seen alone.

    held_out_bytes: of UTF-8, that the stream stands for.
    """

    calibration: torch.Tensor
    held_out: torch.Tensor
    windows: Sequence[Window]
    held_out_bytes: int

    def window(self, window: Window) -> torch.Tensor:
        """Its ids."""
        return self.held_out[window.start : window.end]

    def fingerprint(self) -> str:
        """Another one, where the weights would become others."""
        return hashlib.sha256(json.dumps(self.calibration.tolist()).encode()).hexdigest()


@dataclass(slots=True)
class Cost:
    """What it costs to predict the windows, and what would have been said instead."""

    nats: float = 0.0
    greedy: list[torch.Tensor] = field(default_factory=list)

    def add(self, logits: torch.Tensor, ids: torch.Tensor, scored: int) -> None:
        """A window's last tokens. logits: of all its places. ids: of the window. scored: how many of them count."""
        predictions, targets = logits[-scored - 1 : -1].float(), ids[-scored:]
        self.nats += torch.nn.functional.cross_entropy(predictions, targets, reduction="sum").item()
        self.greedy.append(predictions.argmax(-1))

    def bits_per_byte(self, size: int) -> float:
        """Of text of so many bytes."""
        return self.nats / math.log(2) / size


def agreement(one: Cost, other: Cost) -> float:
    """The fraction of places at which the likeliest token is the same."""
    return float((torch.cat(one.greedy) == torch.cat(other.greedy)).float().mean())


def read_texts(work: QuantizeWork, tokenizer: Tokenizer, end_of_text_id: int, positions: int) -> Texts:
    """Raises JobError where a file cannot be read, or has too little text."""
    ids = tokenizer.encode(_text(work.calibration))
    tokens = min(work.sequence_tokens, positions)
    count = min(work.sequences, len(ids) // tokens)
    if count == 0:
        raise JobError(f"{work.calibration}: has {len(ids)} tokens, a sequence takes {tokens} (--sequence-tokens)", 2)
    held_out = tokenizer.encode(_text(work.held_out))[: work.held_out_tokens]
    if not held_out:
        raise JobError(f"{work.held_out}: is empty", 2)
    stream = torch.tensor([end_of_text_id, *held_out])
    windows = list(sliding_windows(len(stream), positions, max(1, positions // 2)))
    size = len(tokenizer.decode(held_out).encode())
    return Texts(torch.tensor(ids[: count * tokens]).view(count, tokens), stream, windows, size)


def _text(file: str) -> str:
    with usable(file), reading(file) as stream:
        try:
            return stream.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise JobError(f"{file}: is not UTF-8: {error}", 2) from error
