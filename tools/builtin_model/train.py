"""The training loop. It can be resumed, and the learning rate is annealed to zero at the end of the budget."""

import ctypes
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from rich.progress import Progress as Display
from rich.progress import TaskID
from transformers import GPTNeoXForCausalLM

from tools.builtin_model.checkpoint import Progress, load_checkpoint, save_checkpoint
from tools.builtin_model.data.packing import Streams, next_batch
from tools.builtin_model.fast_forward import fast_loss
from tools.builtin_model.model import new_model, parameter_groups
from tools.builtin_model.progress import progress_display
from tools.builtin_model.schedule import Budget, Schedule

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of a training run, apart from its data and budget."""

    seed: int = 0
    """Seed of the initial weights and the block order."""
    batch_tokens: int = 4096
    """Number of tokens in one optimizer step."""
    micro_batch_tokens: int = 1024
    """Number of tokens in one forward and backward pass; it must divide `batch_tokens`."""
    workers: int = 2
    """Number of threads that compute micro-batches."""
    weight_decay: float = 0.1
    """AdamW's weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's betas."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient."""
    matmul_dtype: torch.dtype = torch.bfloat16
    """Precision of matrix products."""
    checkpoint_every_s: float = 120.0
    """Time between two checkpoints, in seconds."""
    log_every_steps: int = 20
    """Number of steps between two lines of the log."""

    def __post_init__(self) -> None:
        if self.batch_tokens % self.micro_batch_tokens:
            raise ValueError(f"micro_batch_tokens {self.micro_batch_tokens} is invalid; it must divide batch_tokens {self.batch_tokens}")


@dataclass(slots=True)
class Trainer:
    """A run in progress.

    Each worker thread computes whole micro-batches on one core. Threads within an operator would synchronize about a thousand times per
    step, and on a machine with other work, each synchronization waits for the busiest core.
    """

    model: GPTNeoXForCausalLM
    """The model in training."""
    optimizer: torch.optim.Optimizer
    """AdamW with its state."""
    progress: Progress
    """How far the run is."""
    options: TrainOptions
    """Options of the run."""
    schedule: Schedule
    """Learning rate and context length over the budget."""
    workers: ThreadPoolExecutor
    """Threads that compute micro-batches."""

    def step(self, streams: Streams, fraction: float) -> float:
        """Takes one optimizer step at `fraction` of the budget, and returns its mean loss in nats per token."""
        started_s = time.monotonic()
        batch_tokens = self.options.batch_tokens
        annealing = self.schedule.is_annealing(fraction)
        batch = next_batch(
            streams.annealing if annealing else streams.everything,
            self.progress.annealing_position if annealing else self.progress.position,
            sequence_tokens=self.schedule.sequence_tokens(fraction),
            batch_tokens=batch_tokens,
            seed=self.options.seed,
        )
        loss = self._accumulate(torch.from_numpy(batch.tokens))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(fraction)
        self.optimizer.step()
        self.optimizer.zero_grad()
        duration_s = time.monotonic() - started_s
        self.progress = self.progress.after_step(batch_tokens, duration_s, batch.next_position, annealing=annealing)
        return loss

    def _accumulate(self, tokens: torch.Tensor) -> float:
        """Adds up the gradients of the batch in a fixed order, independent of the workers' timing, and returns the mean loss."""
        parts = tokens.split(max(self.options.micro_batch_tokens // tokens.shape[1], 1))
        weights = list(self.model.parameters())

        def gradients(part: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
            loss = fast_loss(self.model, part, self.options.matmul_dtype) / len(parts)
            return loss.item(), torch.autograd.grad(loss, weights)

        total = 0.0
        for loss, found in self.workers.map(gradients, parts):
            total += loss
            for weight, gradient in zip(weights, found, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return total


def start_trainer(checkpoint: Path, options: TrainOptions, schedule: Schedule) -> Trainer:
    """Returns a new run, or the run of the checkpoint if there is one at `checkpoint`."""
    model = new_model(options.seed)
    groups = parameter_groups(model, options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=schedule.peak_learning_rate, betas=options.betas, fused=True)
    progress = Progress()
    if checkpoint.exists():
        progress = load_checkpoint(checkpoint, model, optimizer)
    workers = ThreadPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,))
    return Trainer(model, optimizer, progress, options, schedule, workers)


def run_training(trainer: Trainer, streams: Streams, budget: Budget, folder: Path, stop: Callable[[], bool]) -> bool:
    """Trains until the budget is used or `stop()` is true, and returns whether the budget is used.

    Checkpoints and a log are written to `folder`.
    """
    saved_s = time.monotonic()
    losses: list[float] = []
    with progress_display() as display, (folder / "train_log.jsonl").open("a", encoding="utf-8") as log:
        task = display.add_task("train", total=1.0, unit="tokens", note="")
        while (fraction := budget.spent_fraction(trainer.progress.steps, trainer.progress.elapsed_s)) < 1.0:
            losses.append(trainer.step(streams, fraction))
            if trainer.progress.steps % trainer.options.log_every_steps == 0:
                _show(display, task, trainer.progress, fraction, float(np.mean(losses)))
                log.write(json.dumps(_log_line(trainer, fraction, float(np.mean(losses)))) + "\n")
                log.flush()
                losses.clear()
            if stop():
                break
            if time.monotonic() - saved_s >= trainer.options.checkpoint_every_s:
                save_checkpoint(folder / "checkpoint.pt", trainer.model, trainer.optimizer, trainer.progress)
                saved_s = time.monotonic()
    save_checkpoint(folder / "checkpoint.pt", trainer.model, trainer.optimizer, trainer.progress)
    return budget.spent_fraction(trainer.progress.steps, trainer.progress.elapsed_s) >= 1.0


def _show(display: Display, task: TaskID, progress: Progress, fraction: float, loss_nats: float) -> None:
    rate = progress.tokens / max(progress.elapsed_s, 1e-9)
    note = f"step {progress.steps}, loss {loss_nats:.3f} nats"
    display.update(task, completed=fraction, rate=rate, note=note)


def _log_line(trainer: Trainer, fraction: float, loss_nats: float) -> dict[str, float]:
    progress = trainer.progress
    return {
        "steps": progress.steps,
        "tokens": progress.tokens,
        "elapsed_s": round(progress.elapsed_s, 1),
        "fraction": round(fraction, 4),
        "loss_nats": round(loss_nats, 4),
        "learning_rate": trainer.schedule.learning_rate(fraction),
    }


def stop_on_signal() -> Callable[[], bool]:
    """Installs handlers for SIGTERM and SIGINT, and returns a function that tells whether one of them has been received."""
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGTERM, remember)
    signal.signal(signal.SIGINT, remember)
    return lambda: bool(received)


def keep_freed_memory() -> None:
    """Configures glibc to reuse large freed blocks. Mapping new memory for activations in each step costs up to half of the time."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            libc.mallopt(parameter, value)
