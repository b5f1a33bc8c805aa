"""The training loop: one optimizer step at a time, resumable, annealed by the end of its budget."""

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
from tools.builtin_model.fast_forward import fast_loss
from tools.builtin_model.model import new_model, parameter_groups
from tools.builtin_model.packing import Streams, next_batch
from tools.builtin_model.progress import progress_display
from tools.builtin_model.schedule import Budget, Schedule

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Everything that shapes a run besides its data and budget."""

    seed: int = 0
    batch_tokens: int = 4096
    micro_batch_tokens: int = 1024
    workers: int = 2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    matmul_dtype: torch.dtype = torch.bfloat16
    checkpoint_every_s: float = 120.0
    log_every_steps: int = 20

    def __post_init__(self) -> None:
        if self.batch_tokens % self.micro_batch_tokens:
            raise ValueError(f"micro_batch_tokens {self.micro_batch_tokens} must divide {self.batch_tokens}")


@dataclass(slots=True)
class Trainer:
    """A run in progress: model, optimizer and where it stands.

    Each worker thread takes whole micro batches on one core. Threads inside an operator would meet at a barrier some
    thousand times a step, and on a machine with other work each meeting waits for the core that is busy elsewhere.
    """

    model: GPTNeoXForCausalLM
    optimizer: torch.optim.Optimizer
    progress: Progress
    options: TrainOptions
    schedule: Schedule
    workers: ThreadPoolExecutor

    def step(self, streams: Streams, fraction: float) -> float:
        """One optimizer step at `fraction` of the budget; returns its mean loss in nats a token."""
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
        """Gradients of the whole batch, summed in a fixed order whichever worker is done first; returns the mean loss."""
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
    """A new run, or the one whose checkpoint is at `checkpoint`."""
    model = new_model(options.seed)
    groups = parameter_groups(model, options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=schedule.peak_learning_rate, betas=options.betas, fused=True)
    progress = Progress()
    if checkpoint.exists():
        progress = load_checkpoint(checkpoint, model, optimizer)
    workers = ThreadPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,))
    return Trainer(model, optimizer, progress, options, schedule, workers)


def run_training(trainer: Trainer, streams: Streams, budget: Budget, folder: Path, stop: Callable[[], bool]) -> bool:
    """Train until the budget is spent or `stop()`; checkpoints and a log go to `folder`. Returns whether done."""
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
    """A function that tells whether SIGTERM or SIGINT has asked for an orderly stop."""
    asked: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, remember)
    signal.signal(signal.SIGINT, remember)
    return lambda: bool(asked)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large freed blocks: mapping activations anew each step costs up to half the time."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            libc.mallopt(parameter, value)
