"""The queue in front of dispatch: who goes next when there is not room for all.

Theory of operation. Requests wait in lanes, one for each model and pool, so that a full pool holds nobody up at another; tenants' counters
are shared by all lanes. The next request of a lane is, in this order:

    1. of the highest class that waits; but a class that has waited unserved for its patience is served once, whatever waits above it. So
       no class starves, and none gets more by piling up what it sends;
    2. of the tenant with the least virtual token counter in that class (`fair_counters`);
    3. the one with the earliest deadline; of equal ones the first that came.

A lane's capacity is places, not tokens: a large request takes one place like a small one, so none is passed over for being large.
What a tenant is expected to generate is charged when its request leaves the queue, by what its requests generated so far, and corrected
when it ends: charging only at the end would let whoever sends long generations run ahead of its counter.
Source of the charge ahead: section 4.5 of the paper ("length prediction").
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from neox_serve.core.cluster import RequestKey
from neox_serve.core.scheduling.fair_counters import FairCounters, cost
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

Lane = tuple[Pool, str]
"""Pool and model."""

PATIENCE_S: Mapping[PriorityClass, float] = {
    PriorityClass.INTERACTIVE: 0.5,
    PriorityClass.DEFAULT: 2.0,
    PriorityClass.BULK: 10.0,
}
"""How long a class waits unserved below others that are served; SYSTEM is the highest."""
_FORGETTING = 0.2
"""How much the newest request counts in what a tenant is expected to generate."""


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits. deadline_s: when it must have its turn, for its answer to be in time; infinite where it has all the time."""

    key: RequestKey
    lane: Lane
    tenant: str
    weight: float
    priority: PriorityClass
    prompt_tokens: int
    max_output_tokens: int
    came_s: float
    deadline_s: float = math.inf
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        """What it claims of a replica."""
        return self.prompt_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The most that waits in one lane, and how long anything may."""

    max_requests: int = 4_096
    max_tokens: int = 8_000_000
    longest_wait_s: float = 60.0


@dataclass(slots=True)
class _Entry:
    """A request in its place. gone: it is in a heap still, but not waiting. work: tokens it is expected to take, as judged when it came."""

    waiting: QueuedRequest
    order: int
    work: float
    gone: bool = False


@dataclass(slots=True)
class _Class:
    """One class in one lane: by tenant, the earliest deadline first. unserved_since_s: when it was last served, or began to wait."""

    unserved_since_s: float
    by_tenant: dict[str, list[tuple[float, int, _Entry]]] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    requests: int = 0

    def put(self, entry: _Entry) -> None:
        tenant = entry.waiting.tenant
        heapq.heappush(self.by_tenant.setdefault(tenant, []), (entry.waiting.deadline_s, entry.order, entry))
        self.work[tenant] = self.work.get(tenant, 0.0) + entry.work
        self.weights[tenant] = entry.waiting.weight
        self.requests += 1

    def leave(self, entry: _Entry) -> None:
        """The entry does not wait any more; its heap lets go of it when it comes to it."""
        entry.gone = True
        self.work[entry.waiting.tenant] -= entry.work
        self.requests -= 1

    def of(self, tenant: str) -> list[_Entry]:
        """A tenant's requests, in no order."""
        return [entry for _, _, entry in self.by_tenant.get(tenant, ()) if not entry.gone]

    def tenants(self) -> Iterator[str]:
        """Those that have requests; forgets the others."""
        for tenant in tuple(self.by_tenant):
            heap = self.by_tenant[tenant]
            while heap and heap[0][2].gone:
                heapq.heappop(heap)
            if heap:
                yield tenant
            else:
                del self.by_tenant[tenant], self.work[tenant], self.weights[tenant]


class FairQueue:
    """All requests that wait."""

    def __init__(self, limits: QueueLimits, patience_s: Mapping[PriorityClass, float] = PATIENCE_S) -> None:
        self._limits = limits
        self._patience_s = patience_s
        self._counters = FairCounters()
        self._orders = count()
        self._entries: dict[RequestKey, _Entry] = {}
        self._classes: dict[tuple[Lane, PriorityClass], _Class] = {}
        self._waiting_of: dict[str, int] = {}
        self._tokens: dict[Lane, int] = {}
        self._requests: dict[Lane, int] = {}
        self._expected: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._entries

    def lanes(self) -> tuple[Lane, ...]:
        """Lanes in which requests wait."""
        return tuple(self._requests)

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Requests and tokens that wait in a lane."""
        return self._requests.get(lane, 0), self._tokens.get(lane, 0)

    def waiting(self) -> Iterator[QueuedRequest]:
        """All that wait, in no order."""
        return (entry.waiting for entry in self._entries.values())

    def counter(self, tenant: str) -> float:
        """What a tenant has been served, weighted."""
        return self._counters.value(tenant)

    # Waiting

    def put(self, waiting: QueuedRequest, now_s: float) -> tuple[QueuedRequest, ...]:
        """Takes a request. Returns those that must leave for it, the least important first; it may be among them."""
        entry = _Entry(waiting, next(self._orders), waiting.prompt_tokens + self._output(waiting))
        self._entries[waiting.key] = entry
        self._classes.setdefault((waiting.lane, waiting.priority), _Class(now_s)).put(entry)
        self._count(waiting, 1)
        return tuple(self._shed(waiting.lane))

    def any_waits(self, lane: Lane, *, but_bulk: bool = False) -> bool:
        """Whether anything waits in a lane; but_bulk: anything besides BULK."""
        bulk = self._classes.get((lane, PriorityClass.BULK)) if but_bulk else None
        return self._requests.get(lane, 0) > (bulk.requests if bulk else 0)

    def pop(self, lane: Lane, now_s: float, *, but_bulk: bool = False) -> QueuedRequest | None:
        """Takes out the next request of a lane; but_bulk: the next besides BULK."""
        chosen = self._next_class(lane, now_s, but_bulk=but_bulk)
        if chosen is None:
            return None
        tenant = min(chosen.tenants(), key=lambda one: (self._counters.value(one), one))
        entry = chosen.by_tenant[tenant][0][2]
        chosen.unserved_since_s = now_s
        self._take_out(entry)
        return entry.waiting

    def remove(self, key: RequestKey) -> QueuedRequest | None:
        """Takes out a request; None where it does not wait."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._take_out(entry)
        return entry.waiting

    def expire(self, now_s: float) -> tuple[QueuedRequest, ...]:
        """Takes out the requests that have waited too long, or whose deadline has come."""
        longest_s = self._limits.longest_wait_s
        late = [one for one in self.waiting() if now_s >= one.deadline_s or now_s - one.came_s >= longest_s]
        for one in late:
            self.remove(one.key)
        return tuple(late)

    def expected_wait_s(self, waiting: QueuedRequest, tokens_per_second: float) -> float:
        """How long a request of a lane waits, from what is served before it; infinite where nothing drains.

        All of higher classes goes before it. Of its own class each tenant is served its share meanwhile, and no more than it has waiting.
        Then a place must come free, which takes about as long as its own work does.
        """
        if tokens_per_second <= 0:
            return math.inf
        classes = {priority: self._classes.get((waiting.lane, priority)) for priority in PriorityClass}
        ahead = sum(sum(each.work.values()) for priority, each in classes.items() if each and priority < waiting.priority)
        same, own = classes[waiting.priority], waiting.prompt_tokens + self._output(waiting)
        if same is None:
            return (ahead + own) / tokens_per_second
        mine = sum(one.work for one in same.of(waiting.tenant) if one.waiting.deadline_s <= waiting.deadline_s)
        shares = ((work, same.weights[tenant]) for tenant, work in same.work.items() if tenant != waiting.tenant)
        others = sum(min(work, (mine + own) / waiting.weight * weight) for work, weight in shares)
        return (ahead + mine + others + own) / tokens_per_second

    # Being served

    def charge_dispatch(self, waiting: QueuedRequest) -> float:
        """A request is dispatched: charges what it is expected to cost, and returns that."""
        charged = cost(waiting.prompt_tokens, waiting.cached_tokens, self._output(waiting))
        self._counters.charge(waiting.tenant, waiting.weight, charged)
        return charged

    def charge_end(self, waiting: QueuedRequest, charged: float, cached_tokens: int, output_tokens: int) -> None:
        """A request has ended: corrects what was charged for it to what it cost."""
        actual = cost(waiting.prompt_tokens, min(cached_tokens, waiting.prompt_tokens), output_tokens)
        self._counters.charge(waiting.tenant, waiting.weight, actual - charged)
        if waiting.max_output_tokens:
            before = self._expected.get(waiting.tenant, float(output_tokens))
            self._expected[waiting.tenant] = before + _FORGETTING * (output_tokens - before)

    # Inside

    def expected_output(self, tenant: str, max_output_tokens: int) -> float:
        """Tokens that a tenant's request will generate, by what its requests did so far."""
        return min(self._expected.get(tenant, float(max_output_tokens)), max_output_tokens)

    def _output(self, waiting: QueuedRequest) -> float:
        return self.expected_output(waiting.tenant, waiting.max_output_tokens)

    def _next_class(self, lane: Lane, now_s: float, *, but_bulk: bool) -> _Class | None:
        """The class that is longest past its patience, or else the highest."""
        considered = [priority for priority in PriorityClass if not (but_bulk and priority is PriorityClass.BULK)]
        waiting = [(priority, each) for priority in considered if (each := self._classes.get((lane, priority))) and each.requests]
        overdue = [
            (now_s - each.unserved_since_s - patience_s, each)
            for priority, each in waiting
            if (patience_s := self._patience_s.get(priority)) is not None and now_s - each.unserved_since_s >= patience_s
        ]
        if overdue:
            return max(overdue, key=lambda item: item[0])[1]
        return waiting[0][1] if waiting else None

    def _count(self, waiting: QueuedRequest, sign: int) -> None:
        lane, tenant = waiting.lane, waiting.tenant
        self._requests[lane] = self._requests.get(lane, 0) + sign
        self._tokens[lane] = self._tokens.get(lane, 0) + sign * waiting.tokens
        if not self._requests[lane]:
            del self._requests[lane], self._tokens[lane]
        self._waiting_of[tenant] = self._waiting_of.get(tenant, 0) + sign
        if sign > 0:
            self._counters.begin_waiting(tenant)
        elif not self._waiting_of[tenant]:
            del self._waiting_of[tenant]
            self._counters.end_waiting(tenant)

    def _take_out(self, entry: _Entry) -> None:
        waiting = entry.waiting
        key = (waiting.lane, waiting.priority)
        self._classes[key].leave(entry)
        if not self._classes[key].requests:
            del self._classes[key]
        del self._entries[waiting.key]
        self._count(waiting, -1)

    def _shed(self, lane: Lane) -> Iterator[QueuedRequest]:
        while True:
            requests, tokens = self.depth(lane)
            if requests <= self._limits.max_requests and tokens <= self._limits.max_tokens:
                return
            entry = self._lowest_priority(lane)
            self._take_out(entry)
            yield entry.waiting

    def _lowest_priority(self, lane: Lane) -> _Entry:
        """Of the lowest class, of the tenant that was served most, the newest."""
        for priority in reversed(PriorityClass):
            if (each := self._classes.get((lane, priority))) is not None:
                tenant = max(each.tenants(), key=self._counters.value)
                return max(each.of(tenant), key=lambda entry: entry.order)
        raise RuntimeError(f"nothing waits in {lane}")
