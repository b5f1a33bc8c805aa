"""What a training needs to go on after its death, in one file that is whole at any time."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deployments.jobs.failures import JobError

Weights = Mapping[str, torch.Tensor]


@dataclass(slots=True)
class Standing:
    """How far a training is. epoch, step: the next one, step within the epoch. steps, tokens, examples: so far, of all epochs.

    best: weights after the epoch with the smallest evaluation loss, best_loss. fruitless: epochs since. history: of steps and epochs.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    examples: int = 0
    tokens: int = 0
    best_loss: float = float("inf")
    best: Weights | None = None
    fruitless: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, fingerprint: str, standing: Standing, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Raises OSError."""
    state = {name: getattr(standing, name) for name in Standing.__slots__}
    aside = path.with_suffix(".whole")
    with aside.open("wb") as stream:
        torch.save({"fingerprint": fingerprint, "standing": state, "weights": weights, "optimizer": optimizer.state_dict()}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def load(path: Path, fingerprint: str, optimizer: torch.optim.Optimizer) -> tuple[Standing, Weights] | None:
    """How far the training was, and its weights; the optimizer gets its state. None where there is no checkpoint.

    Raises JobError where it is damaged, or of another training.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found, standing, weights = state["fingerprint"], Standing(**state["standing"]), state["weights"]
        if found == fingerprint:
            optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # torch raises what its readers raise
        raise JobError(f"{path}: the checkpoint is damaged: {error}; remove {path.parent} to begin anew", 1) from error
    if found != fingerprint:
        raise JobError(f"{path}: is of a training with other examples or options; name another adapter, or remove {path.parent}", 2)
    return standing, weights
