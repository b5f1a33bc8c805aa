"""The training loop. Everything in it follows from the examples, the options and the seed: one that goes on after its death ends with the
same weights as one that never died, and several processes together with those of one alone, up to rounding.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deployments.jobs.finetune import checkpoint
from deployments.jobs.finetune.checkpoint import Standing, Weights
from deployments.jobs.finetune.packing import Packed, attention_mask
from neox_serve.core.jobs.finetune import FinetuneWork

_WARMUP_FRACTION = 0.05
_LONGEST_GRADIENT = 1.0
_SEQUENCES_AT_ONCE = 8
"""That go through the model together; a step of more adds their gradients up."""


@dataclass(frozen=True, slots=True)
class Share:
    """This process's place among those that train together. add_up: makes of each tensor the sum of all processes' ones, in place."""

    rank: int = 0
    world: int = 1
    add_up: Callable[[Sequence[torch.Tensor]], None] = lambda _tensors: None


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on, and what the loss is measured on; nothing where none is kept out."""

    training: Packed
    evaluation: Packed | None


@dataclass(frozen=True, slots=True)
class Training:
    """A run. model: with the adapter, on a device. weights: the adapter's, as they are; restore: sets them.

    checkpoint: file of it. fingerprint: of examples and options. told: where it begins, and of every step.
    save_every: steps between checkpoints.
    """

    work: FinetuneWork
    model: Callable[..., Any]
    device: torch.device
    parameters: Sequence[torch.nn.Parameter]
    weights: Callable[[], Weights]
    restore: Callable[[Weights], None]
    checkpoint: Path
    fingerprint: str
    told: Callable[[Standing], None] = lambda _standing: None
    share: Share = Share()
    save_every: int = 50

    def run(self, data: Data) -> Standing:
        """Trains to the end, and restores the best weights. Raises JobError, OSError."""
        optimizer = torch.optim.AdamW(self.parameters, lr=self.work.learning_rate, weight_decay=0.0)
        standing = self._resumed(optimizer)
        per_step = sequences_a_step(data.training, self.work.batch_tokens)
        total = self.work.epochs * math.ceil(len(data.training) / per_step)
        self.told(standing)
        while standing.epoch < self.work.epochs and not self._stopped_early(standing):
            for batch in self._batches(data.training, per_step, standing):
                self._step(optimizer, data.training.taken(batch), standing, total)
                if standing.steps % self.save_every == 0:
                    self._save(optimizer, standing)
            self._end_epoch(data.evaluation, standing)
            self._save(optimizer, standing)
        if standing.best is not None:
            self.restore(standing.best)
        return standing

    def _resumed(self, optimizer: torch.optim.Optimizer) -> Standing:
        found = checkpoint.load(self.checkpoint, self.fingerprint, optimizer)
        if found is None:
            return Standing()
        self.restore(found[1])
        return found[0]

    def _save(self, optimizer: torch.optim.Optimizer, standing: Standing) -> None:
        if self.share.rank == 0:
            checkpoint.save(self.checkpoint, self.fingerprint, standing, self.weights(), optimizer)

    def _stopped_early(self, standing: Standing) -> bool:
        return 0 < self.work.early_stop_epochs <= standing.fruitless

    def _batches(self, training: Packed, per_step: int, standing: Standing) -> Iterator[list[int]]:
        """The rest of the epoch, a list of sequences a step, in an order of the seed and the epoch."""
        order = np.random.default_rng([self.work.seed, standing.epoch]).permutation(len(training)).tolist()
        for start in range(standing.step * per_step, len(order), per_step):
            yield order[start : start + per_step]

    def _step(self, optimizer: torch.optim.Optimizer, batch: Packed, standing: Standing, total: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.work.learning_rate * rate_fraction(standing.steps, total)
        loss = self._loss(batch, backward=True)
        self.share.add_up([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.parameters, _LONGEST_GRADIENT)
        optimizer.step()
        standing.step, standing.steps = standing.step + 1, standing.steps + 1
        standing.examples, standing.tokens = standing.examples + batch.examples(), standing.tokens + batch.tokens()
        standing.history.append({"step": standing.steps, "epoch": standing.epoch, "loss": loss})
        self.told(standing)

    def _end_epoch(self, evaluation: Packed | None, standing: Standing) -> None:
        """Measures, and keeps the weights where they are better than any before; without examples to measure on, the last ones count."""
        standing.epoch, standing.step = standing.epoch + 1, 0
        if evaluation is None:
            return
        with torch.inference_mode():
            loss = self._loss(evaluation, backward=False)
        standing.history.append({"step": standing.steps, "epoch": standing.epoch, "evaluation_loss": loss})
        if loss < standing.best_loss:
            standing.best_loss, standing.fruitless = loss, 0
            standing.best = {name: tensor.clone() for name, tensor in self.weights().items()}
        else:
            standing.fruitless += 1

    def _loss(self, batch: Packed, *, backward: bool) -> float:
        """Mean over all learnt tokens of the batch, in nats. backward: leaves this process's part of the gradients in the parameters."""
        count = max(1, int(batch.learnt.sum()))
        mine = range(self.share.rank, len(batch), self.share.world)
        total = torch.zeros(1)
        if backward:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        for start in range(0, len(mine), _SEQUENCES_AT_ONCE):
            part = nats(self.model, batch.taken(mine[start : start + _SEQUENCES_AT_ONCE]), self.device) / count
            if backward:
                part.backward()
            total += part.detach().cpu()
        self.share.add_up([total])
        return float(total)


def nats(model: Callable[..., Any], batch: Packed, device: torch.device) -> torch.Tensor:
    """What predicting the learnt tokens costs, summed."""

    def tensor(values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    ids, learnt = tensor(batch.token_ids), tensor(batch.learnt)[:, 1:]
    mask, positions = tensor(attention_mask(batch.owners)), tensor(batch.positions)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1][learnt].float(), ids[:, 1:][learnt], reduction="sum")


def sequences_a_step(training: Packed, batch_tokens: int) -> int:
    """So that a step has about so many tokens."""
    length: int = training.token_ids.shape[1]
    return max(1, min(len(training), round(batch_tokens / length)))


def rate_fraction(step: int, total: int) -> float:
    """Of the highest learning rate: up in a line, then down along half a cosine. Source: Loshchilov and Hutter 2017, SGDR."""
    warmup = max(1, round(_WARMUP_FRACTION * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def shaping_options(work: FinetuneWork) -> Mapping[str, Any]:
    """What shapes the weights: of the options, all but the number of processes."""
    return {name: getattr(work, name) for name in FinetuneWork.__slots__ if name not in {"workers", "input", "rejects", "adapter"}}
