"""The share of BULK requests: idle capacity while no other class has requests, and a small part of each batch otherwise.

A batch full of BULK requests makes every engine step slow and leaves no place for a new request, which would have to wait for a sequence to
end. BULK therefore never fills the whole batch, and gets few places while other classes have requests running or had some a moment ago.
"""

from collections import Counter
from dataclasses import dataclass

from neox_serve.core.scheduling.fair_queue import Lane, QueuedRequest
from neox_serve.core.tenancy.tenants import PriorityClass


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """Maximum number of running BULK requests per ready replica."""

    per_replica: int
    """While no other class has requests."""
    per_replica_contended: int
    """While other classes have running requests, or had some within `quiet_s`."""
    quiet_s: float = 2.0
    """How long the pool must have been free of other requests before `per_replica` applies, in seconds."""

    def __post_init__(self) -> None:
        if self.per_replica < 1 or self.per_replica_contended < 1 or self.quiet_s < 0:
            raise ValueError(f"{self}: per_replica and per_replica_contended must be at least 1, quiet_s at least 0")


class BulkShare:
    """Counts running requests by lane and decides whether one more BULK request may run."""

    def __init__(self, limits: BulkLimits | None) -> None:
        """limits: None if only the replicas' own capacity limits BULK."""
        self._limits = limits
        self._bulk: Counter[Lane] = Counter()
        self._others: Counter[Lane] = Counter()
        self._others_s: dict[Lane, float] = {}

    def began(self, request: QueuedRequest, now_s: float) -> None:
        """Records that a request was granted a replica."""
        self._count(request, 1, now_s)

    def ended(self, request: QueuedRequest, now_s: float) -> None:
        """Records that a granted request has ended."""
        self._count(request, -1, now_s)

    def has_room(self, lane: Lane, replicas: int, now_s: float) -> bool:
        """Returns whether one more BULK request may run. replicas: number of ready replicas."""
        if self._limits is None:
            return True
        quiet = not self._others[lane] and now_s - self._others_s.get(lane, float("-inf")) >= self._limits.quiet_s
        return self._bulk[lane] < (self._limits.per_replica if quiet else self._limits.per_replica_contended) * replicas

    def _count(self, request: QueuedRequest, change: int, now_s: float) -> None:
        if request.priority is PriorityClass.BULK:
            self._bulk[request.lane] += change
        else:
            self._others[request.lane] += change
            self._others_s[request.lane] = now_s
