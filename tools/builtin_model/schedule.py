"""Learning rate and context length as functions of the fraction of the budget that is spent.

Warm-up, stable, decay ("WSD"). A budget is either steps or seconds of training; because both curves depend on the
fraction only, a run can be given more or less budget when it is resumed and still ends fully annealed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """The shape of a run. Fractions are of the whole budget."""

    peak_learning_rate: float = 1.5e-3
    warmup_fraction: float = 0.02
    decay_from_fraction: float = 0.6
    context_stages: tuple[tuple[float, int], ...] = ((0.0, 256), (0.45, 512), (0.9, 2048))
    """(from fraction, context tokens), rising: short sequences first because they are cheaper, the longest last."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup_fraction <= self.decay_from_fraction < 1.0:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} and decay_from_fraction {self.decay_from_fraction}; "
                "allowed: 0 <= warmup <= decay < 1"
            )
        starts = [start for start, _ in self.context_stages]
        if starts != sorted(starts) or starts[:1] != [0.0]:
            raise ValueError(f"context_stages {self.context_stages}; allowed: starts rise from 0")

    def learning_rate(self, fraction: float) -> float:
        """Rate at `fraction` of the budget: linear up, flat, linear down to zero at 1."""
        if fraction < self.warmup_fraction:
            return self.peak_learning_rate * max(fraction / self.warmup_fraction, 0.01)
        if fraction < self.decay_from_fraction:
            return self.peak_learning_rate
        left = (1.0 - fraction) / (1.0 - self.decay_from_fraction)
        return self.peak_learning_rate * max(left, 0.0)

    def is_annealing(self, fraction: float) -> bool:
        """Whether the rate is falling at `fraction` of the budget: what is learned now stays, so the text is chosen."""
        return fraction >= self.decay_from_fraction

    def sequence_tokens(self, fraction: float) -> int:
        """Sequence length at `fraction` of the budget."""
        return [tokens for start, tokens in self.context_stages if fraction >= start][-1]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train: exactly one of `steps` and `seconds_s` is given."""

    steps: int | None = None
    seconds_s: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds_s is None):
            raise ValueError("give exactly one of steps and seconds_s")
        if (self.steps or self.seconds_s or 0) <= 0:
            raise ValueError(f"budget is steps={self.steps}, seconds_s={self.seconds_s}; allowed: above 0")

    def spent_fraction(self, steps: int, elapsed_s: float) -> float:
        """Share of the budget used after `steps` steps and `elapsed_s` seconds of training, at most 1."""
        if self.steps is not None:
            return min(steps / self.steps, 1.0)
        assert self.seconds_s is not None
        return min(elapsed_s / self.seconds_s, 1.0)
