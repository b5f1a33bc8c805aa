"""How many BULK requests run at once: what is idle while nobody else is about, a little of each replica's batch while somebody is.

A batch that BULK fills makes every step long and leaves no place in it: who comes then waits for a step of all of it, or for an answer to
end. So BULK never has all the places of a batch, and few of them while others' requests run or have only just ended.
"""

from collections import Counter
from dataclasses import dataclass

from neox_serve.core.scheduling.fair_queue import Lane, QueuedRequest
from neox_serve.core.tenancy.tenants import PriorityClass


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """BULK requests for each ready replica. alone: while nobody else is about; beside: while others' run, or have within quiet_s."""

    alone: int
    beside: int
    quiet_s: float = 2.0

    def __post_init__(self) -> None:
        if self.alone < 1 or self.beside < 1 or self.quiet_s < 0:
            raise ValueError(f"{self}: alone and beside must be at least 1, quiet_s at least 0")


class BulkShare:
    """What runs, by lane. limits None: BULK is bounded by the places of replicas alone."""

    def __init__(self, limits: BulkLimits | None) -> None:
        self._limits = limits
        self._bulk: Counter[Lane] = Counter()
        self._others: Counter[Lane] = Counter()
        self._others_s: dict[Lane, float] = {}

    def began(self, waiting: QueuedRequest, now_s: float) -> None:
        """A request has been granted a replica."""
        self._count(waiting, 1, now_s)

    def ended(self, waiting: QueuedRequest, now_s: float) -> None:
        """It has ended."""
        self._count(waiting, -1, now_s)

    def has_room(self, lane: Lane, replicas: int, now_s: float) -> bool:
        """Whether a further BULK request may run. replicas: that are ready."""
        if self._limits is None:
            return True
        quiet = not self._others[lane] and now_s - self._others_s.get(lane, float("-inf")) >= self._limits.quiet_s
        return self._bulk[lane] < (self._limits.alone if quiet else self._limits.beside) * replicas

    def _count(self, waiting: QueuedRequest, change: int, now_s: float) -> None:
        if waiting.priority is PriorityClass.BULK:
            self._bulk[waiting.lane] += change
        else:
            self._others[waiting.lane] += change
            self._others_s[waiting.lane] = now_s
