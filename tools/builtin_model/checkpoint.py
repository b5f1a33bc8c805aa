"""Saving and restoring a training run: weights, optimizer, random state, data position, progress.

A checkpoint is written aside and renamed, so an interruption leaves the previous one whole.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tools.builtin_model.packing import DataPosition


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `elapsed_s` counts time spent training, across sessions; `tokens` counts inputs."""

    steps: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    position: DataPosition = field(default_factory=DataPosition)
    annealing_position: DataPosition = field(default_factory=DataPosition)

    def after_step(self, tokens: int, duration_s: float, position: DataPosition, *, annealing: bool) -> "Progress":
        """Progress one optimizer step later; `position` is in the annealing stream or in the whole one."""
        return replace(
            self,
            steps=self.steps + 1,
            tokens=self.tokens + tokens,
            elapsed_s=self.elapsed_s + duration_s,
            position=self.position if annealing else position,
            annealing_position=position if annealing else self.annealing_position,
        )


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write everything a resumed run needs to go on as if it had not stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "progress": asdict(progress),
    }
    aside = path.with_suffix(".partial")
    torch.save(state, aside)
    aside.replace(path)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Restore `model` (and `optimizer` and the random state, when given) from `path`; return how far the run was.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
    fields = state["progress"]
    positions = {name: DataPosition(**fields[name]) for name in ("position", "annealing_position")}
    return Progress(**{**fields, **positions})
