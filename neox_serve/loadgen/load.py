"""One load as a value: which requests, when, and for how long."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from random import Random

from neox_serve.loadgen.arrivals import Arrivals, ClosedLoop, Replay
from neox_serve.loadgen.workloads import Request, Workload

Scheduled = tuple[float, Request]
"""Start time in seconds from the start of the run, and the request."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator runs."""

    workload: Workload
    arrivals: Arrivals
    duration_s: float | None = None
    """No request is sent after this time; those in flight are awaited. None runs to the end of the workload."""
    max_in_flight: int | None = None
    """Maximum number of concurrent requests of an open loop. Further requests start late, which their records show. None: no limit."""
    seed: int = 0
    """Seed of random arrivals."""

    def __post_init__(self) -> None:
        if self.duration_s is not None and self.duration_s <= 0:
            raise ValueError(f"duration_s {self.duration_s:g}: must be above 0")
        if self.max_in_flight is not None and (self.max_in_flight < 1 or isinstance(self.arrivals, ClosedLoop)):
            raise ValueError(f"max_in_flight {self.max_in_flight}: must be at least 1, and is for open loops only")


def scheduled(load: Load) -> list[Scheduled]:
    """Returns the requests of an open loop with their start times. Raises ValueError if a recording without times is to be replayed."""
    pairs = _timed(load)
    if load.duration_s is not None:
        end_s = load.duration_s
        pairs = takewhile(lambda pair: pair[0] < end_s, pairs)
    return list(pairs)


def _timed(load: Load) -> Iterator[Scheduled]:
    arrivals, requests = load.arrivals, load.workload.requests()
    assert not isinstance(arrivals, ClosedLoop)
    if isinstance(arrivals, Replay):
        recorded = list(requests)
        return zip(arrivals.times_s(map(_recorded_s, recorded)), recorded, strict=True)
    return zip(arrivals.times_s(Random(load.seed)), requests, strict=False)


def _recorded_s(request: Request) -> float:
    if request.recorded_s is None:
        raise ValueError("a request without a recorded time cannot be replayed")
    return request.recorded_s
