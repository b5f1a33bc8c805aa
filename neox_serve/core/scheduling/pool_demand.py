"""What requests ask of a pool, counted as they come: for whoever decides how many replicas it should have."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from neox_serve.core.cluster import ReplicaPhase, ReplicaView, RequestTimings
from neox_serve.core.scheduling.fair_queue import QueuedRequest
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

_MAX_TIMINGS = 10_000
"""Kept between two looks, the newest; nobody may ever look."""


@dataclass(slots=True)
class ClassCounts:
    """Of one priority class: requests that came since the last look, with their tokens, output as expected; and those that wait now."""

    requests: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    waiting_requests: int = 0
    waiting_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """One pool at one moment. running_*: dispatched and not ended. prefill_backlog_tokens: of all replicas.

    seconds: since the look before, of which by_class tells, and timings: those of the answers that ended, BULK left out.
    """

    ready_replicas: int = 0
    draining_replicas: int = 0
    running_requests: int = 0
    running_tokens: int = 0
    kv_usage_fraction: float = 0.0
    prefill_backlog_tokens: int = 0
    by_class: Mapping[PriorityClass, ClassCounts] = field(default_factory=dict)
    timings: Sequence[RequestTimings] = ()
    seconds: float = 1.0


class DemandMeter:
    """Counts requests as they come and end."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._counts: dict[tuple[Pool, PriorityClass], ClassCounts] = {}
        self._ended_timings: dict[Pool, deque[RequestTimings]] = {}

    def came(self, waiting: QueuedRequest, output_tokens: float) -> None:
        """A request came for the first time. output_tokens: that it is expected to generate."""
        counts = self._counts.setdefault((waiting.lane[0], waiting.priority), ClassCounts())
        counts.requests += 1
        counts.input_tokens += waiting.prompt_tokens
        counts.output_tokens += output_tokens

    def ended(self, waiting: QueuedRequest, timings: RequestTimings) -> None:
        """An answer is whole."""
        if waiting.priority is not PriorityClass.BULK:
            self._ended_timings.setdefault(waiting.lane[0], deque(maxlen=_MAX_TIMINGS)).append(timings)

    def look(self, replicas: Iterable[ReplicaView], queue: Iterable[tuple[QueuedRequest, float]], now_s: float) -> dict[Pool, PoolDemand]:
        """All pools, and what came since the look before. queue: who waits, each with its expected output."""
        counts, self._counts = self._counts, {}
        timings, self._ended_timings = self._ended_timings, {}
        seconds, self._since_s = max(1e-3, now_s - self._since_s), now_s
        for waiting, output_tokens in queue:
            one = counts.setdefault((waiting.lane[0], waiting.priority), ClassCounts())
            one.waiting_requests += 1
            one.waiting_tokens += waiting.prompt_tokens + output_tokens
        seen = list(replicas)
        return {
            pool: replace(
                _supply([one for one in seen if one.replica.pool is pool]),
                by_class={priority: one for (of, priority), one in counts.items() if of is pool},
                timings=tuple(timings.get(pool, ())),
                seconds=seconds,
            )
            for pool in Pool
        }


def _supply(members: list[ReplicaView]) -> PoolDemand:
    """What the replicas of a pool have to do."""
    ready = [one for one in members if one.ready]
    return PoolDemand(
        ready_replicas=len(ready),
        draining_replicas=sum(one.replica.phase is ReplicaPhase.DRAINING for one in members),
        running_requests=sum(one.outstanding.requests for one in members),
        running_tokens=sum(one.outstanding.tokens for one in members),
        kv_usage_fraction=sum(one.load.kv_usage_fraction for one in ready) / len(ready) if ready else 0.0,
        prefill_backlog_tokens=sum(one.load.prefill_backlog_tokens for one in members),
    )
