"""Statistics over rounds, and comparisons of two systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from neox_serve.loadgen.records import Record


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of a value over rounds."""

    median: float
    """Median."""
    low: float
    """Minimum."""
    high: float
    """Maximum."""
    rounds: int
    """Number of rounds."""

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Returns the median and range. Raises ValueError if there are no values."""
    if not values:
        raise ValueError("no round was measured")
    return Spread(median(values), min(values), max(values), len(values))


def ratios(of: Sequence[float], over: Sequence[float]) -> Spread:
    """Returns the distribution of the ratios within each round, which cancels drift between rounds.

    Raises ValueError if the lengths differ.
    """
    return spread([one / other for one, other in zip(of, over, strict=True)])


def differences(of: Sequence[float], minus: Sequence[float]) -> Spread:
    """Returns the distribution of the differences within each round. Raises ValueError if the lengths differ."""
    return spread([one - other for one, other in zip(of, minus, strict=True)])


def identical_fraction(ours: Sequence[Record], theirs: Sequence[Record]) -> float:
    """Returns the fraction of requests with the same tokens from both systems, or 0 without requests.

    Raises ValueError if the lengths differ.
    """
    same = [one.token_ids == other.token_ids for one, other in zip(ours, theirs, strict=True)]
    return fmean(same) if same else 0.0
