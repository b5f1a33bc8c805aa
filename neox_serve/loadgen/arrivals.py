"""Arrival processes: when requests are meant to start.

The times of an open loop are computed in advance, so that a slow response neither delays the next request nor hides the time that callers
would have waited.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from random import Random


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of callers. Each sends its next request when its response is complete."""

    streams: int
    """Number of callers."""

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise ValueError(f"streams {self.streams}: must be at least 1")


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests at a fixed mean rate, independent of the responses."""

    rate_rps: float
    """Requests per second."""
    cv: float = 1.0
    """Coefficient of variation of the gaps between requests: 0 is constant, 1 is Poisson, larger values are bursty."""

    def __post_init__(self) -> None:
        if self.rate_rps <= 0:
            raise ValueError(f"rate_rps {self.rate_rps:g}: must be above 0")
        if self.cv < 0:
            raise ValueError(f"cv {self.cv:g}: must not be below 0")

    def times_s(self, rng: Random) -> Iterator[float]:
        """Yields start times without end, the first at 0. The gaps follow a gamma distribution."""
        at_s = 0.0
        for gap_s in self._gaps_s(rng):
            yield at_s
            at_s += gap_s

    def _gaps_s(self, rng: Random) -> Iterator[float]:
        mean_s = 1.0 / self.rate_rps
        if self.cv == 0:
            return repeat(mean_s)
        shape = self.cv**-2
        return (rng.gammavariate(shape, mean_s / shape) for _ in repeat(None))


@dataclass(frozen=True, slots=True)
class Replay:
    """Requests at the times of a recording."""

    speed: float = 1.0
    """Speed-up: 2 replays the recording in half the time."""

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed {self.speed:g}: must be above 0")

    def times_s(self, recorded_s: Iterable[float]) -> Iterator[float]:
        """Yields start times, the first at 0. recorded_s: times in the recording."""
        first_s: float | None = None
        for at_s in recorded_s:
            first_s = at_s if first_s is None else first_s
            yield (at_s - first_s) / self.speed


Arrivals = ClosedLoop | OpenLoop | Replay
