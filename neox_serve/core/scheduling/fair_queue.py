"""The queue in front of dispatch: which request is next if there is not enough capacity for all.

Theory of operation: requests wait in lanes, one per model and pool, so that a full pool does not delay requests for another one. Tenants'
counters are shared by all lanes. The next request of a lane is chosen by these rules, in this order:

    1. Class: the highest class with waiting requests. A class that has not been served for its patience is served once, even if higher
       classes wait. So no class starves, and sending more requests does not give a class a larger share.
    2. Tenant: the tenant of that class with the smallest virtual token counter (`fair_counters`).
    3. Deadline: the request with the earliest deadline; among equal deadlines, the one that arrived first.

Capacity is counted in requests, not in tokens. A large request takes one place like a small one, so it is never passed over for its size.

A tenant is charged for the expected output of a request when the request leaves the queue, based on the tenant's earlier requests. The
charge is corrected when the request ends. If tenants were charged only at the end, one that sends long generations would get ahead of its
counter. Source: section 4.5 ("length prediction") of the paper that `fair_counters` names.
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
"""A pool and a model."""

PATIENCE_S: Mapping[PriorityClass, float] = {
    PriorityClass.INTERACTIVE: 0.5,
    PriorityClass.DEFAULT: 2.0,
    PriorityClass.BULK: 10.0,
}
"""How long a class may wait unserved while higher classes are served. SYSTEM is the highest class and needs no patience."""
_FORGETTING = 0.2
"""Weight of the newest request in the moving average of a tenant's output length."""


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request in the queue."""

    key: RequestKey
    lane: Lane
    tenant: str
    weight: float
    """The tenant's weight for fair sharing."""
    priority: PriorityClass
    prompt_tokens: int
    max_output_tokens: int
    arrival_s: float
    """When the request arrived."""
    deadline_s: float = math.inf
    """Latest start that still lets the response meet its deadline; infinite without a deadline."""
    cached_tokens: int = 0
    """Prompt tokens that the replica is expected to have cached."""

    @property
    def tokens(self) -> int:
        """Tokens that the request may occupy on a replica: its prompt plus the maximum output."""
        return self.prompt_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of one lane."""

    max_requests: int = 4_096
    """Maximum number of waiting requests."""
    max_tokens: int = 8_000_000
    """Maximum number of tokens of the waiting requests, prompts plus maximum outputs."""
    max_wait_s: float = 60.0
    """A request that has waited this long is refused."""


@dataclass(slots=True)
class _Entry:
    """A queued request in a heap."""

    request: QueuedRequest
    order: int
    """Sequence number of the arrival."""
    work: float
    """Expected prompt plus output tokens, estimated at arrival."""
    gone: bool = False
    """Whether the request has left the queue; the heap drops the entry when it reaches the top."""


@dataclass(slots=True)
class _Class:
    """The requests of one class in one lane."""

    unserved_since_s: float
    """When the class was last served, or when it started to wait."""
    by_tenant: dict[str, list[tuple[float, int, _Entry]]] = field(default_factory=dict)
    """Tenant to a heap of its requests, earliest deadline first."""
    work: dict[str, float] = field(default_factory=dict)
    """Tenant to the sum of its requests' expected tokens."""
    weights: dict[str, float] = field(default_factory=dict)
    requests: int = 0

    def put(self, entry: _Entry) -> None:
        tenant = entry.request.tenant
        heapq.heappush(self.by_tenant.setdefault(tenant, []), (entry.request.deadline_s, entry.order, entry))
        self.work[tenant] = self.work.get(tenant, 0.0) + entry.work
        self.weights[tenant] = entry.request.weight
        self.requests += 1

    def leave(self, entry: _Entry) -> None:
        """Marks an entry as gone. The heap drops it when it reaches the top."""
        entry.gone = True
        self.work[entry.request.tenant] -= entry.work
        self.requests -= 1

    def of(self, tenant: str) -> list[_Entry]:
        """Returns a tenant's requests, in no particular order."""
        return [entry for _, _, entry in self.by_tenant.get(tenant, ()) if not entry.gone]

    def tenants(self) -> Iterator[str]:
        """Yields the tenants with waiting requests and drops the others."""
        for tenant in tuple(self.by_tenant):
            heap = self.by_tenant[tenant]
            while heap and heap[0][2].gone:
                heapq.heappop(heap)
            if heap:
                yield tenant
            else:
                del self.by_tenant[tenant], self.work[tenant], self.weights[tenant]


class FairQueue:
    """All waiting requests, with the tenants' counters."""

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
        """Returns the lanes with waiting requests."""
        return tuple(self._requests)

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Returns the numbers of waiting requests and tokens in a lane."""
        return self._requests.get(lane, 0), self._tokens.get(lane, 0)

    def waiting(self) -> Iterator[QueuedRequest]:
        """Iterates over all waiting requests, in no particular order."""
        return (entry.request for entry in self._entries.values())

    def counter(self, tenant: str) -> float:
        """Returns the weighted service that a tenant has received, in prompt tokens."""
        return self._counters.value(tenant)

    # Waiting

    def put(self, request: QueuedRequest, now_s: float) -> tuple[QueuedRequest, ...]:
        """Adds a request. Returns the requests shed to stay within the limits, lowest priority first. The new one may be among them."""
        entry = _Entry(request, next(self._orders), request.prompt_tokens + self._output(request))
        self._entries[request.key] = entry
        self._classes.setdefault((request.lane, request.priority), _Class(now_s)).put(entry)
        self._count(request, 1)
        return tuple(self._shed(request.lane))

    def any_waits(self, lane: Lane, *, skip_bulk: bool = False) -> bool:
        """Returns whether any request waits in a lane. skip_bulk: ignore BULK requests."""
        bulk = self._classes.get((lane, PriorityClass.BULK)) if skip_bulk else None
        return self._requests.get(lane, 0) > (bulk.requests if bulk else 0)

    def pop(self, lane: Lane, now_s: float, *, skip_bulk: bool = False) -> QueuedRequest | None:
        """Removes and returns the next request of a lane, or None if none waits. skip_bulk: ignore BULK requests."""
        chosen = self._next_class(lane, now_s, skip_bulk=skip_bulk)
        if chosen is None:
            return None
        tenant = min(chosen.tenants(), key=lambda one: (self._counters.value(one), one))
        entry = chosen.by_tenant[tenant][0][2]
        chosen.unserved_since_s = now_s
        self._take_out(entry)
        return entry.request

    def remove(self, key: RequestKey) -> QueuedRequest | None:
        """Removes and returns a request; None if it is not in the queue."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._take_out(entry)
        return entry.request

    def expire(self, now_s: float) -> tuple[QueuedRequest, ...]:
        """Removes and returns the requests that have waited too long or whose latest start has passed."""
        longest_s = self._limits.max_wait_s
        late = [one for one in self.waiting() if now_s >= one.deadline_s or now_s - one.arrival_s >= longest_s]
        for one in late:
            self.remove(one.key)
        return tuple(late)

    def expected_wait_s(self, request: QueuedRequest, tokens_per_second: float) -> float:
        """Returns how long a request would wait, given the lane's service rate; infinite if the rate is 0.

        All requests of higher classes go first. Within its class, every other tenant is served its weighted share in the meantime, but no
        more than it has waiting. Then a place must become free, which takes about as long as the request's own work.
        """
        if tokens_per_second <= 0:
            return math.inf
        classes = {priority: self._classes.get((request.lane, priority)) for priority in PriorityClass}
        ahead = sum(sum(each.work.values()) for priority, each in classes.items() if each and priority < request.priority)
        same, own = classes[request.priority], request.prompt_tokens + self._output(request)
        if same is None:
            return (ahead + own) / tokens_per_second
        mine = sum(one.work for one in same.of(request.tenant) if one.request.deadline_s <= request.deadline_s)
        shares = ((work, same.weights[tenant]) for tenant, work in same.work.items() if tenant != request.tenant)
        others = sum(min(work, (mine + own) / request.weight * weight) for work, weight in shares)
        return (ahead + mine + others + own) / tokens_per_second

    # Accounting

    def charge_dispatch(self, request: QueuedRequest) -> float:
        """Charges the tenant the expected cost of a dispatched request. Returns the amount."""
        charged = cost(request.prompt_tokens, request.cached_tokens, self._output(request))
        self._counters.charge(request.tenant, request.weight, charged)
        return charged

    def charge_end(self, request: QueuedRequest, charged: float, cached_tokens: int, output_tokens: int) -> None:
        """Corrects the charge for a request that has ended to its actual cost, and updates the tenant's expected output."""
        actual = cost(request.prompt_tokens, min(cached_tokens, request.prompt_tokens), output_tokens)
        self._counters.charge(request.tenant, request.weight, actual - charged)
        if request.max_output_tokens:
            before = self._expected.get(request.tenant, float(output_tokens))
            self._expected[request.tenant] = before + _FORGETTING * (output_tokens - before)

    # Internals

    def expected_output(self, tenant: str, max_output_tokens: int) -> float:
        """Returns how many tokens a tenant's request is expected to generate, based on its earlier requests."""
        return min(self._expected.get(tenant, float(max_output_tokens)), max_output_tokens)

    def _output(self, request: QueuedRequest) -> float:
        return self.expected_output(request.tenant, request.max_output_tokens)

    def _next_class(self, lane: Lane, now_s: float, *, skip_bulk: bool) -> _Class | None:
        """Returns the class that is furthest past its patience, or else the highest class with waiting requests."""
        considered = [priority for priority in PriorityClass if not (skip_bulk and priority is PriorityClass.BULK)]
        nonempty = [(priority, each) for priority in considered if (each := self._classes.get((lane, priority))) and each.requests]
        overdue = [
            (now_s - each.unserved_since_s - patience_s, each)
            for priority, each in nonempty
            if (patience_s := self._patience_s.get(priority)) is not None and now_s - each.unserved_since_s >= patience_s
        ]
        if overdue:
            return max(overdue, key=lambda item: item[0])[1]
        return nonempty[0][1] if nonempty else None

    def _count(self, request: QueuedRequest, sign: int) -> None:
        lane, tenant = request.lane, request.tenant
        self._requests[lane] = self._requests.get(lane, 0) + sign
        self._tokens[lane] = self._tokens.get(lane, 0) + sign * request.tokens
        if not self._requests[lane]:
            del self._requests[lane], self._tokens[lane]
        self._waiting_of[tenant] = self._waiting_of.get(tenant, 0) + sign
        if sign > 0:
            self._counters.begin_waiting(tenant)
        elif not self._waiting_of[tenant]:
            del self._waiting_of[tenant]
            self._counters.end_waiting(tenant)

    def _take_out(self, entry: _Entry) -> None:
        request = entry.request
        key = (request.lane, request.priority)
        self._classes[key].leave(entry)
        if not self._classes[key].requests:
            del self._classes[key]
        del self._entries[request.key]
        self._count(request, -1)

    def _shed(self, lane: Lane) -> Iterator[QueuedRequest]:
        while True:
            requests, tokens = self.depth(lane)
            if requests <= self._limits.max_requests and tokens <= self._limits.max_tokens:
                return
            entry = self._lowest_priority(lane)
            self._take_out(entry)
            yield entry.request

    def _lowest_priority(self, lane: Lane) -> _Entry:
        """Returns the newest request of the tenant with the largest counter in the lowest class."""
        for priority in reversed(PriorityClass):
            if (each := self._classes.get((lane, priority))) is not None:
                tenant = max(each.tenants(), key=self._counters.value)
                return max(each.of(tenant), key=lambda entry: entry.order)
        raise RuntimeError(f"no request waits in lane {lane}")
