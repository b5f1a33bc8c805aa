"""Demand on each pool, counted as requests arrive and end. Autoscaling reads it to decide how many replicas a pool needs."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from neox_serve.core.cluster import ReplicaPhase, ReplicaView, RequestTimings
from neox_serve.core.scheduling.fair_queue import QueuedRequest
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

_MAX_TIMINGS = 10_000
"""Bound on the timings kept between two snapshots; the newest are kept. Without autoscaling no snapshot is ever taken."""


@dataclass(slots=True)
class ClassCounts:
    """Demand of one priority class."""

    requests: int = 0
    """Requests that arrived since the last snapshot."""
    input_tokens: float = 0.0
    """Their prompt tokens."""
    output_tokens: float = 0.0
    """Their expected output tokens."""
    waiting_requests: int = 0
    """Requests that wait in the queue now."""
    waiting_tokens: float = 0.0
    """Their prompt plus expected output tokens."""


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """A snapshot of one pool."""

    ready_replicas: int = 0
    draining_replicas: int = 0
    running_requests: int = 0
    """Requests that were dispatched and have not ended."""
    running_tokens: int = 0
    """Tokens that these requests may occupy."""
    kv_usage_fraction: float = 0.0
    """Mean over the ready replicas, 0 to 1."""
    prefill_backlog_tokens: int = 0
    """Sum over all replicas."""
    by_class: Mapping[PriorityClass, ClassCounts] = field(default_factory=dict)
    timings: Sequence[RequestTimings] = ()
    """Timings of the responses that completed since the previous snapshot, without BULK."""
    seconds: float = 1.0
    """Time since the previous snapshot."""


class DemandMeter:
    """Counts requests as they arrive and end."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._counts: dict[tuple[Pool, PriorityClass], ClassCounts] = {}
        self._ended_timings: dict[Pool, deque[RequestTimings]] = {}

    def record_arrival(self, request: QueuedRequest, output_tokens: float) -> None:
        """Records the first arrival of a request. output_tokens: its expected output."""
        counts = self._counts.setdefault((request.lane[0], request.priority), ClassCounts())
        counts.requests += 1
        counts.input_tokens += request.prompt_tokens
        counts.output_tokens += output_tokens

    def record_end(self, request: QueuedRequest, timings: RequestTimings) -> None:
        """Records a completed response."""
        if request.priority is not PriorityClass.BULK:
            self._ended_timings.setdefault(request.lane[0], deque(maxlen=_MAX_TIMINGS)).append(timings)

    def snapshot(
        self, replicas: Iterable[ReplicaView], queue: Iterable[tuple[QueuedRequest, float]], now_s: float
    ) -> dict[Pool, PoolDemand]:
        """Returns the demand on all pools and starts a new interval. queue: the waiting requests with their expected output tokens."""
        counts, self._counts = self._counts, {}
        timings, self._ended_timings = self._ended_timings, {}
        seconds, self._since_s = max(1e-3, now_s - self._since_s), now_s
        for request, output_tokens in queue:
            one = counts.setdefault((request.lane[0], request.priority), ClassCounts())
            one.waiting_requests += 1
            one.waiting_tokens += request.prompt_tokens + output_tokens
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
    """Returns the part of a pool's demand that its replicas report."""
    ready = [one for one in members if one.ready]
    return PoolDemand(
        ready_replicas=len(ready),
        draining_replicas=sum(one.replica.phase is ReplicaPhase.DRAINING for one in members),
        running_requests=sum(one.outstanding.requests for one in members),
        running_tokens=sum(one.outstanding.tokens for one in members),
        kv_usage_fraction=sum(one.load.kv_usage_fraction for one in ready) / len(ready) if ready else 0.0,
        prefill_backlog_tokens=sum(one.load.prefill_backlog_tokens for one in members),
    )
