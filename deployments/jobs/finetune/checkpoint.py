"""The checkpoint of a training: one file with everything that is needed to continue after a crash. A reader always sees a complete one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deployments.jobs.failures import JobError

Weights = Mapping[str, torch.Tensor]
"""Tensors of the adapter by name."""


@dataclass(slots=True)
class TrainingState:
    """How far a training is."""

    epoch: int = 0
    """The next epoch, from 0."""
    step: int = 0
    """The next step within the epoch, from 0."""
    steps: int = 0
    """Number of steps so far, in all epochs."""
    examples: int = 0
    """Number of examples so far, in all epochs."""
    tokens: int = 0
    """Number of tokens so far, in all epochs."""
    best_loss: float = float("inf")
    """The smallest evaluation loss so far, in nats per token."""
    best: Weights | None = None
    """Weights after the epoch with the smallest evaluation loss; None before the first evaluation."""
    epochs_without_improvement: int = 0
    """Number of epochs since then."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The loss of each step and the evaluation loss of each epoch."""


def save(path: Path, fingerprint: str, state: TrainingState, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Writes a checkpoint. `fingerprint` identifies the examples and options. Raises OSError."""
    values = {name: getattr(state, name) for name in TrainingState.__slots__}
    temporary = path.with_suffix(".whole")
    with temporary.open("wb") as stream:
        torch.save({"fingerprint": fingerprint, "state": values, "weights": weights, "optimizer": optimizer.state_dict()}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def load(path: Path, fingerprint: str, optimizer: torch.optim.Optimizer) -> tuple[TrainingState, Weights] | None:
    """Returns the state and the weights of a checkpoint, and restores the optimizer; None if there is no checkpoint.

    Raises JobError if the checkpoint is damaged or has another fingerprint.
    """
    if not path.exists():
        return None
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found, state, weights = stored["fingerprint"], TrainingState(**stored["state"]), stored["weights"]
        if found == fingerprint:
            optimizer.load_state_dict(stored["optimizer"])
    except Exception as error:  # torch raises whatever its readers raise
        raise JobError(f"{path}: the checkpoint is damaged: {error}; remove {path.parent} to start again", 1) from error
    if found != fingerprint:
        raise JobError(
            f"{path}: belongs to a training with other examples or options; choose another adapter name, or remove {path.parent}", 2
        )
    return state, weights
