"""When requests are meant to start.

An open loop's times are computed ahead, so that a slow answer neither delays the next request nor hides what waiting would have cost.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from random import Random


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`streams` callers, each asking anew when its answer is whole."""

    streams: int

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise ValueError(f"streams {self.streams}: must be at least 1")


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests at a rate, whatever becomes of them. cv: of the gaps between them; 0 is constant, 1 Poisson, more comes in bursts."""

    rate_rps: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        if self.rate_rps <= 0:
            raise ValueError(f"rate_rps {self.rate_rps:g}: must be above 0")
        if self.cv < 0:
            raise ValueError(f"cv {self.cv:g}: must not be below 0")

    def times_s(self, rng: Random) -> Iterator[float]:
        """Endless start times, the first at 0. Gaps are gamma distributed."""
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
    """Requests when a recording had them. speed: 2 replays it in half the time."""

    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed {self.speed:g}: must be above 0")

    def times_s(self, recorded_s: Iterable[float]) -> Iterator[float]:
        """Start times, the first at 0."""
        first_s: float | None = None
        for at_s in recorded_s:
            first_s = at_s if first_s is None else first_s
            yield (at_s - first_s) / self.speed


Arrivals = ClosedLoop | OpenLoop | Replay
