"""The training loop.

Everything is determined by the examples, the options and the seed. A training that continues after a crash ends with the same weights as
one that never crashed, and several processes end with the weights of a single one, up to rounding.
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
from deployments.jobs.finetune.checkpoint import TrainingState, Weights
from deployments.jobs.finetune.packing import Packed, attention_mask
from neox_serve.core.jobs.finetune import FinetuneWork

_WARMUP_FRACTION = 0.05
_MAX_GRADIENT_NORM = 1.0
_MICRO_BATCH_SEQUENCES = 8
"""Number of sequences in one forward pass. A step with more sequences accumulates gradients."""


@dataclass(frozen=True, slots=True)
class Share:
    """The share of this process in a training."""

    rank: int = 0
    """Index of this process."""
    world: int = 1
    """Number of processes."""
    add_up: Callable[[Sequence[torch.Tensor]], None] = lambda _tensors: None
    """Replaces each tensor by its sum over all processes, in place."""


@dataclass(frozen=True, slots=True)
class Data:
    """The examples of a training."""

    training: Packed
    """Examples to train on."""
    evaluation: Packed | None
    """Examples to evaluate on; None if none are held out."""


@dataclass(frozen=True, slots=True)
class Training:
    """A training run."""

    work: FinetuneWork
    """The options of the training."""
    model: Callable[..., Any]
    """The model with the adapter, on `device`."""
    device: torch.device
    """Where the model is."""
    parameters: Sequence[torch.nn.Parameter]
    """The parameters that are trained."""
    weights: Callable[[], Weights]
    """Returns the adapter's current weights."""
    restore: Callable[[Weights], None]
    """Sets the adapter's weights."""
    checkpoint: Path
    """The checkpoint file."""
    fingerprint: str
    """Identifies the examples and the options."""
    on_step: Callable[[TrainingState], None] = lambda _state: None
    """Called at the start and after every step."""
    share: Share = Share()
    """The share of this process."""
    save_every: int = 50
    """Number of steps between checkpoints."""

    def run(self, data: Data) -> TrainingState:
        """Trains to the end and restores the best weights. Returns the final state. Raises JobError or OSError."""
        optimizer = torch.optim.AdamW(self.parameters, lr=self.work.learning_rate, weight_decay=0.0)
        state = self._resumed(optimizer)
        per_step = sequences_per_step(data.training, self.work.batch_tokens)
        total = self.work.epochs * math.ceil(len(data.training) / per_step)
        self.on_step(state)
        while state.epoch < self.work.epochs and not self._stopped_early(state):
            for batch in self._batches(data.training, per_step, state):
                self._step(optimizer, data.training.taken(batch), state, total)
                if state.steps % self.save_every == 0:
                    self._save(optimizer, state)
            self._end_epoch(data.evaluation, state)
            self._save(optimizer, state)
        if state.best is not None:
            self.restore(state.best)
        return state

    def _resumed(self, optimizer: torch.optim.Optimizer) -> TrainingState:
        found = checkpoint.load(self.checkpoint, self.fingerprint, optimizer)
        if found is None:
            return TrainingState()
        self.restore(found[1])
        return found[0]

    def _save(self, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
        if self.share.rank == 0:
            checkpoint.save(self.checkpoint, self.fingerprint, state, self.weights(), optimizer)

    def _stopped_early(self, state: TrainingState) -> bool:
        return 0 < self.work.early_stop_epochs <= state.epochs_without_improvement

    def _batches(self, training: Packed, per_step: int, state: TrainingState) -> Iterator[list[int]]:
        """Yields the sequences of each remaining step of the epoch. Their order depends on the seed and the epoch."""
        order = np.random.default_rng([self.work.seed, state.epoch]).permutation(len(training)).tolist()
        for start in range(state.step * per_step, len(order), per_step):
            yield order[start : start + per_step]

    def _step(self, optimizer: torch.optim.Optimizer, batch: Packed, state: TrainingState, total: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.work.learning_rate * rate_fraction(state.steps, total)
        loss = self._loss(batch, backward=True)
        self.share.add_up([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT_NORM)
        optimizer.step()
        state.step, state.steps = state.step + 1, state.steps + 1
        state.examples, state.tokens = state.examples + batch.examples(), state.tokens + batch.tokens()
        state.history.append({"step": state.steps, "epoch": state.epoch, "loss": loss})
        self.on_step(state)

    def _end_epoch(self, evaluation: Packed | None, state: TrainingState) -> None:
        """Evaluates, and keeps the weights if they are the best so far. Without evaluation examples, the last weights are used."""
        state.epoch, state.step = state.epoch + 1, 0
        if evaluation is None:
            return
        with torch.inference_mode():
            loss = self._loss(evaluation, backward=False)
        state.history.append({"step": state.steps, "epoch": state.epoch, "evaluation_loss": loss})
        if loss < state.best_loss:
            state.best_loss, state.epochs_without_improvement = loss, 0
            state.best = {name: tensor.clone() for name, tensor in self.weights().items()}
        else:
            state.epochs_without_improvement += 1

    def _loss(self, batch: Packed, *, backward: bool) -> float:
        """Returns the mean loss over all learned tokens of the batch, in nats.

        With `backward`, leaves this process's part of the gradients in the parameters.
        """
        count = max(1, int(batch.learned.sum()))
        mine = range(self.share.rank, len(batch), self.share.world)
        total = torch.zeros(1)
        if backward:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        for start in range(0, len(mine), _MICRO_BATCH_SEQUENCES):
            part = summed_loss(self.model, batch.taken(mine[start : start + _MICRO_BATCH_SEQUENCES]), self.device) / count
            if backward:
                part.backward()
            total += part.detach().cpu()
        self.share.add_up([total])
        return float(total)


def summed_loss(model: Callable[..., Any], batch: Packed, device: torch.device) -> torch.Tensor:
    """Returns the cross-entropy of the learned tokens, summed, in nats."""

    def tensor(values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    ids, learned = tensor(batch.token_ids), tensor(batch.learned)[:, 1:]
    mask, positions = tensor(attention_mask(batch.owners)), tensor(batch.positions)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1][learned].float(), ids[:, 1:][learned], reduction="sum")


def sequences_per_step(training: Packed, batch_tokens: int) -> int:
    """Returns the number of sequences that have about `batch_tokens` tokens together; at least 1."""
    length: int = training.token_ids.shape[1]
    return max(1, min(len(training), round(batch_tokens / length)))


def rate_fraction(step: int, total: int) -> float:
    """Returns the learning rate of a step as a fraction of the peak: linear warm-up, then cosine decay.

    Source: Loshchilov and Hutter 2017, SGDR.
    """
    warmup = max(1, round(_WARMUP_FRACTION * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def shaping_options(work: FinetuneWork) -> Mapping[str, Any]:
    """Returns the options that determine the weights."""
    return {name: getattr(work, name) for name in FinetuneWork.__slots__ if name not in {"workers", "input", "rejects", "adapter"}}
