"""The texts of a quantization: sequences for calibration, and windows on which the model is measured before and after."""

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
from neox_serve.model.windows import Window, sliding_windows


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as token ids."""

    calibration: torch.Tensor
    """Calibration sequences, [sequences, tokens]."""
    held_out: torch.Tensor
    """The held-out text, [tokens], after an end-of-text token."""
    windows: Sequence[Window]
    """Windows of the held-out text, which the model sees one at a time."""
    held_out_bytes: int
    """Size of the held-out text in UTF-8."""

    def window(self, window: Window) -> torch.Tensor:
        """Returns the token ids of a window."""
        return self.held_out[window.start : window.end]

    def fingerprint(self) -> str:
        """Returns a digest that changes if the resulting weights would change."""
        return hashlib.sha256(json.dumps(self.calibration.tolist()).encode()).hexdigest()


@dataclass(slots=True)
class Cost:
    """The loss on the windows, and the most likely tokens."""

    nats: float = 0.0
    """Summed cross-entropy."""
    greedy: list[torch.Tensor] = field(default_factory=list)
    """The most likely token at each scored position, a tensor for each window."""

    def add(self, logits: torch.Tensor, ids: torch.Tensor, scored: int) -> None:
        """Adds the last `scored` tokens of a window, given the logits of all its positions and its token ids."""
        predictions, targets = logits[-scored - 1 : -1].float(), ids[-scored:]
        self.nats += torch.nn.functional.cross_entropy(predictions, targets, reduction="sum").item()
        self.greedy.append(predictions.argmax(-1))

    def bits_per_byte(self, size: int) -> float:
        """Returns the loss in bits per byte of a text of `size` bytes."""
        return self.nats / math.log(2) / size


def agreement(one: Cost, other: Cost) -> float:
    """Returns the fraction of positions at which the most likely token is the same."""
    return float((torch.cat(one.greedy) == torch.cat(other.greedy)).float().mean())


def read_texts(work: QuantizeWork, tokenizer: Tokenizer, end_of_text_id: int, positions: int) -> Texts:
    """Reads the texts of a job. Raises JobError if a file cannot be read or is too short."""
    ids = tokenizer.encode(_text(work.calibration))
    tokens = min(work.sequence_tokens, positions)
    count = min(work.sequences, len(ids) // tokens)
    if count == 0:
        raise JobError(f"{work.calibration}: has {len(ids)} tokens; a sequence needs {tokens} (--sequence-tokens)", 2)
    held_out = tokenizer.encode(_text(work.held_out))[: work.held_out_tokens]
    if not held_out:
        raise JobError(f"{work.held_out} is empty", 2)
    stream = torch.tensor([end_of_text_id, *held_out])
    windows = list(sliding_windows(len(stream), positions, max(1, positions // 2)))
    size = len(tokenizer.decode(held_out).encode())
    return Texts(torch.tensor(ids[: count * tokens]).view(count, tokens), stream, windows, size)


def _text(file: str) -> str:
    with usable(file), reading(file) as stream:
        try:
            return stream.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise JobError(f"{file} is not UTF-8: {error}", 2) from error
