"""Learning rate and context length as functions of the fraction of the budget that has been used.

The learning rate has three phases: warm-up, stable, decay ("WSD"). A budget is a number of steps or of seconds. Because both curves depend
only on the used fraction, a resumed run may have a different budget and still ends fully annealed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a training run. Fractions refer to the whole budget."""

    peak_learning_rate: float = 1.5e-3
    """Learning rate of the stable phase."""
    warmup_fraction: float = 0.02
    """Fraction of the budget at which the warm-up ends."""
    decay_from_fraction: float = 0.6
    """Fraction of the budget at which the decay begins."""
    context_stages: tuple[tuple[float, int], ...] = ((0.0, 256), (0.45, 512), (0.9, 2048))
    """Pairs of a fraction of the budget and the context length in tokens from there on. Short sequences come first, because they are
    cheaper."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup_fraction <= self.decay_from_fraction < 1.0:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} and decay_from_fraction {self.decay_from_fraction} are invalid; "
                "they must satisfy 0 <= warmup <= decay < 1"
            )
        starts = [start for start, _ in self.context_stages]
        if starts != sorted(starts) or starts[:1] != [0.0]:
            raise ValueError(f"context_stages {self.context_stages} are invalid; their fractions must start at 0 and increase")

    def learning_rate(self, fraction: float) -> float:
        """Returns the learning rate at `fraction` of the budget: a linear rise, a constant, and a linear decay to zero at 1."""
        if fraction < self.warmup_fraction:
            return self.peak_learning_rate * max(fraction / self.warmup_fraction, 0.01)
        if fraction < self.decay_from_fraction:
            return self.peak_learning_rate
        left = (1.0 - fraction) / (1.0 - self.decay_from_fraction)
        return self.peak_learning_rate * max(left, 0.0)

    def is_annealing(self, fraction: float) -> bool:
        """Returns whether the rate decays at `fraction` of the budget. This phase uses selected text, because it has the most lasting
        effect."""
        return fraction >= self.decay_from_fraction

    def sequence_tokens(self, fraction: float) -> int:
        """Returns the sequence length in tokens at `fraction` of the budget."""
        return [tokens for start, tokens in self.context_stages if fraction >= start][-1]


@dataclass(frozen=True, slots=True)
class Budget:
    """The length of a training run. Exactly one of the fields is set."""

    steps: int | None = None
    """Number of steps."""
    seconds_s: float | None = None
    """Training time in seconds."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds_s is None):
            raise ValueError("exactly one of steps and seconds_s must be given")
        if (self.steps or self.seconds_s or 0) <= 0:
            raise ValueError(f"steps={self.steps}, seconds_s={self.seconds_s} is invalid; the budget must be positive")

    def spent_fraction(self, steps: int, elapsed_s: float) -> float:
        """Returns the fraction of the budget used after `steps` steps and `elapsed_s` seconds, at most 1."""
        if self.steps is not None:
            return min(steps / self.steps, 1.0)
        assert self.seconds_s is not None
        return min(elapsed_s / self.seconds_s, 1.0)
