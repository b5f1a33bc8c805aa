"""Figures of several rounds, and of two systems side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from neox_serve.loadgen.records import Record


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and range. Raises ValueError where there is no value."""
    if not values:
        raise ValueError("no round was measured")
    return Spread(median(values), min(values), max(values), len(values))


def ratios(of: Sequence[float], over: Sequence[float]) -> Spread:
    """Ratio within each round, then over rounds: what drifts from round to round cancels out. Raises ValueError where sizes differ."""
    return spread([one / other for one, other in zip(of, over, strict=True)])


def differences(of: Sequence[float], minus: Sequence[float]) -> Spread:
    """Difference within each round, then over rounds. Raises ValueError where sizes differ."""
    return spread([one - other for one, other in zip(of, minus, strict=True)])


def identical_fraction(ours: Sequence[Record], theirs: Sequence[Record]) -> float:
    """Share of requests to which both systems answered with the same tokens; 0 of none. Raises ValueError where sizes differ."""
    same = [one.token_ids == other.token_ids for one, other in zip(ours, theirs, strict=True)]
    return fmean(same) if same else 0.0
