"""Saving and loading of a training run: weights, optimizer, random state, data position, progress.

A checkpoint is written to a temporary file and renamed, so that an interruption leaves the previous one intact.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tools.builtin_model.data.packing import DataPosition


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a training run."""

    steps: int = 0
    """Number of optimizer steps."""
    tokens: int = 0
    """Number of input tokens."""
    elapsed_s: float = 0.0
    """Training time over all sessions, in seconds."""
    position: DataPosition = field(default_factory=DataPosition)
    """Position in the whole corpus."""
    annealing_position: DataPosition = field(default_factory=DataPosition)
    """Position in the annealing part of the corpus."""

    def after_step(self, tokens: int, duration_s: float, position: DataPosition, *, annealing: bool) -> "Progress":
        """Returns the progress after one more step. `position` refers to the annealing stream if `annealing` is true."""
        return replace(
            self,
            steps=self.steps + 1,
            tokens=self.tokens + tokens,
            elapsed_s=self.elapsed_s + duration_s,
            position=self.position if annealing else position,
            annealing_position=position if annealing else self.annealing_position,
        )


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes everything that a resumed run needs to continue as if it had not stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "progress": asdict(progress),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Restores `model` from `path`, and `optimizer` and the random state if an optimizer is given. Return the progress of the run.

    Raises FileNotFoundError if there is no checkpoint at `path`.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
    fields = state["progress"]
    positions = {name: DataPosition(**fields[name]) for name in ("position", "annealing_position")}
    return Progress(**{**fields, **positions})
