"""Decides about requests for replicas: each is granted a replica at once, queued and granted one later, or refused.

Theory of operation. A request is granted at once if a replica has room and no request waits before it. Otherwise it waits in the fair queue
of its lane (pool and model), and each place that becomes free goes to the next request of the queue. A queued request leaves without a
replica in three ways: it is shed for one of a higher priority class, it has waited too long, or nothing can serve it any more. Every
request gets exactly one final outcome; `Queued` and `Preempt` are not final.

BULK requests may have to wait although replicas have room, so that other classes find replicas that are not full of them (`bulk_share`).
Other requests then overtake them.

While a request of a higher class waits, a running BULK request may be preempted. Only its gateway knows whether it already has output. If
it has, the gateway ignores the notification; otherwise the request returns and waits again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from neox_serve.core.cluster import Demand, RequestKey, Settled, TenantView
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.bulk_share import BulkLimits, BulkShare
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.drain_rate import DrainRate
from neox_serve.core.scheduling.fair_queue import FairQueue, Lane, QueuedRequest, QueueLimits
from neox_serve.core.scheduling.pool_demand import DemandMeter, PoolDemand
from neox_serve.core.scheduling.refusal import MAX_RETRY_S, MIN_RETRY_S
from neox_serve.core.scheduling.routing import RoutingFailure
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

_MAX_WAIT_FRACTION = 0.75
"""A request is refused if its expected wait exceeds this fraction of the time left: waiting in vain would only delay others."""
_SPEED_SMOOTHING = 0.1
"""Weight of the newest request in the moving average of seconds per token."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits in the queue. A final outcome follows."""


@dataclass(frozen=True, slots=True)
class Preempt:
    """A running request should return and wait again, if it has no output yet."""


Outcome = Grant | Queued | Preempt | ServeError
"""What a gateway can be told about a request. All but `Queued` and `Preempt` are final."""


@dataclass(frozen=True, slots=True)
class Notification:
    """Something to tell a gateway about one of its requests."""

    gateway_id: str
    lease_id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Running:
    """A request that was granted a replica."""

    request: QueuedRequest
    charged: float
    """Cost that was charged to its tenant when it was granted."""
    granted_s: float


class Admissions:
    """All requests for replicas, from all gateways.

    limits: bounds of the queue. waking: lanes whose requests are queued if there is no replica, because one will be started for them. bulk:
    bounds of the BULK class at each replica; None for no bounds. Times are seconds of one monotonic clock.
    """

    def __init__(
        self,
        state: ClusterState,
        limits: QueueLimits,
        *,
        waking: frozenset[Lane] = frozenset(),
        bulk: BulkLimits | None = None,
        now_s: float = 0.0,
    ) -> None:
        self._state = state
        self._limits = limits
        self._queue = FairQueue(limits)
        self._demands: dict[RequestKey, Demand] = {}
        self._running: dict[RequestKey, _Running] = {}
        self._bulk: dict[Lane, list[RequestKey]] = {}
        self._rates: dict[Lane, DrainRate] = {}
        self._seconds_per_token: dict[Lane, float] = {}
        self._waking = waking
        self._share = BulkShare(bulk)
        self._meter = DemandMeter(now_s)

    @property
    def queue(self) -> FairQueue:
        """The requests that wait; for reading only."""
        return self._queue

    def admit(self, gateway_id: str, lease_id: int, demand: Demand, now_s: float) -> list[Notification]:
        """Grants, queues or refuses a request. Returns a notification about it, then those about requests that it displaces."""
        request = _queued_request(gateway_id, lease_id, demand, now_s, self._slack_s(demand))
        if not demand.terms.waited_s and not demand.excluded:
            self._meter.record_arrival(request, self._queue.expected_output(request.tenant, request.max_output_tokens))
        if self._is_next(request, now_s):
            decision = self._state.try_admit(gateway_id, lease_id, demand)
            if isinstance(decision, Grant):
                self._granted(request, now_s)
                return [Notification(gateway_id, lease_id, decision)]
            if decision is not RoutingFailure.FULL and not self._starts_replica(request, demand):
                return [Notification(gateway_id, lease_id, self._state.refuse(decision, demand, now_s))]
        if not self._limits.max_requests:
            return [Notification(gateway_id, lease_id, self._state.refuse(RoutingFailure.FULL, demand, now_s))]
        if (late := self._too_late(request, now_s)) is not None:
            return [Notification(gateway_id, lease_id, late)]
        return self._enqueue(request, demand, now_s)

    def settle(self, gateway_id: str, settled: Settled, now_s: float) -> None:
        """Ends a request that has finished or was withdrawn. Ignores unknown ones."""
        key = (gateway_id, settled.lease_id)
        if self._queue.remove(key) is not None:
            del self._demands[key]
        self._state.settle(gateway_id, [settled.lease_id])
        running = self._running.pop(key, None)
        if running is not None:
            request = running.request
            self._share.ended(request, now_s)
            self._queue.charge_end(request, running.charged, settled.cached_tokens, settled.output_tokens)
            served = request.prompt_tokens + settled.output_tokens
            self._rates.setdefault(request.lane, DrainRate()).add(served, now_s)
            if settled.timings is not None:
                self._meter.record_end(request, settled.timings)
            if settled.output_tokens:
                self._record_speed(request.lane, (now_s - running.granted_s) / settled.output_tokens)

    def grant_next(self, now_s: float) -> list[Notification]:
        """Grants the places that have become free to queued requests."""
        notifications: list[Notification] = []
        for lane in self._queue.lanes():
            while self._state.has_room(*lane):
                request = self._queue.pop(lane, now_s, skip_bulk=self._holds_bulk(lane, now_s))
                if request is None:
                    break
                notifications.append(self._grant(request, now_s))
        return notifications

    def expire(self, now_s: float) -> list[Notification]:
        """Refuses the queued requests that have waited too long."""
        return [self._refused(request, self._timed_out(request, now_s)) for request in self._queue.expire(now_s)]

    def drop_gateway_queue(self, gateway_id: str) -> None:
        """Removes a gateway's queued requests after its stream ended: it admits them again on the next stream, if they are still wanted."""
        for request in tuple(self._queue.waiting()):
            if _gateway_of(request) == gateway_id:
                self._queue.remove(request.key)
                del self._demands[request.key]

    def forget(self, gateway_ids: tuple[str, ...], now_s: float) -> None:
        """Ends the requests of gateways that will not return. What was charged for them is not refunded."""
        for key in [key for key, running in self._running.items() if _gateway_of(running.request) in gateway_ids]:
            self._share.ended(self._running.pop(key).request, now_s)

    def tokens_per_second(self, lane: Lane, now_s: float) -> float | None:
        """Returns how fast a lane's requests are served; None if that is not known yet."""
        rate = self._rates.get(lane)
        return rate.tokens_per_second(now_s) if rate else None

    def expected_wait_s(self, demand: Demand, now_s: float) -> float | None:
        """Returns how long a request would wait now: 0 if it would be granted at once, None if unknown."""
        request = _queued_request("", 0, demand, now_s)
        if self._is_next(request, now_s) and self._state.has_room(demand.pool, demand.model):
            return 0.0
        rate = self.tokens_per_second(request.lane, now_s)
        return None if not rate else self._queue.expected_wait_s(request, rate)

    def tenants(self, max_tenants: int) -> tuple[TenantView, ...]:
        """Returns the tenants that have requests, the busiest first."""
        sums: dict[str, list[int]] = {}
        for place, request in self._all_requests():
            counts = sums.setdefault(request.tenant, [0, 0, 0, 0])
            counts[place] += 1
            counts[place + 1] += request.tokens
        busiest = sorted(sums.items(), key=lambda item: (-item[1][1] - item[1][3], item[0]))[:max_tenants]
        return tuple(TenantView(name, c[0], c[1], c[2], c[3], self._queue.counter(name)) for name, c in busiest)

    def demand(self, now_s: float) -> dict[Pool, PoolDemand]:
        """Returns the demand on each pool: what arrived since the previous call, what waits and what runs."""
        queue = ((request, self._queue.expected_output(request.tenant, request.max_output_tokens)) for request in self._queue.waiting())
        return self._meter.snapshot(self._state.view(now_s).replicas, queue, now_s)

    def _starts_replica(self, request: QueuedRequest, demand: Demand) -> bool:
        """Returns whether a replica will be started for the request if there is none."""
        return request.lane in self._waking and not demand.excluded

    def _is_next(self, request: QueuedRequest, now_s: float) -> bool:
        """Returns whether a request that arrives now would be the next to be granted."""
        held = self._holds_bulk(request.lane, now_s)
        return not (held and request.priority is PriorityClass.BULK) and not self._queue.any_waits(request.lane, skip_bulk=held)

    def _holds_bulk(self, lane: Lane, now_s: float) -> bool:
        """Returns whether BULK requests must wait although there are replicas."""
        replicas = self._state.ready_count(*lane)
        return bool(replicas) and not self._share.has_room(lane, replicas, now_s)

    def _all_requests(self) -> Iterator[tuple[int, QueuedRequest]]:
        """Yields (0, request) for running and (2, request) for queued requests; the number is an offset in a tenant's sums."""
        for running in self._running.values():
            yield 0, running.request
        for request in self._queue.waiting():
            yield 2, request

    def _enqueue(self, request: QueuedRequest, demand: Demand, now_s: float) -> list[Notification]:
        self._demands[request.key] = demand
        shed = self._queue.put(request, now_s)
        notifications = [] if request in shed else [Notification(*request.key, Queued())]
        notifications += [self._refused(one, self._shed(one, now_s)) for one in shed]
        return notifications + self._preemptions(request)

    def _record_speed(self, lane: Lane, seconds_per_token: float) -> None:
        before = self._seconds_per_token.get(lane, seconds_per_token)
        self._seconds_per_token[lane] = before + _SPEED_SMOOTHING * (seconds_per_token - before)

    def _slack_s(self, demand: Demand) -> float:
        """Returns how long before its deadline a request must be granted: the time that it is expected to run."""
        expected = self._queue.expected_output(demand.terms.tenant, demand.output_tokens)
        return expected * self._seconds_per_token.get((demand.pool, demand.model), 0.0)

    def _preemptions(self, request: QueuedRequest) -> list[Notification]:
        """Preempts one running BULK request for each waiting request of a higher class, the newest first."""
        bulk = self._bulk.get(request.lane, [])
        while request.priority < PriorityClass.BULK and bulk:
            key = bulk.pop()
            if key in self._running:
                return [Notification(*key, Preempt())]
        return []

    def _granted(self, request: QueuedRequest, now_s: float) -> None:
        self._running[request.key] = _Running(request, self._queue.charge_dispatch(request), now_s)
        self._share.began(request, now_s)
        if request.priority is PriorityClass.BULK:
            bulk = self._bulk.setdefault(request.lane, [])
            bulk.append(request.key)
            if len(bulk) > 2 * len(self._running):
                self._bulk[request.lane] = [key for key in bulk if key in self._running]

    def _grant(self, request: QueuedRequest, now_s: float) -> Notification:
        gateway_id, lease_id = request.key
        demand = self._demands.pop(request.key)
        decision = self._state.try_admit(gateway_id, lease_id, demand)
        if isinstance(decision, Grant):
            self._granted(request, now_s)
            return Notification(gateway_id, lease_id, decision)
        return Notification(gateway_id, lease_id, self._state.refuse(decision, demand, now_s))

    def _refused(self, request: QueuedRequest, error: ServeError) -> Notification:
        del self._demands[request.key]
        return Notification(*request.key, error)

    def _too_late(self, request: QueuedRequest, now_s: float) -> ServeError | None:
        """Returns the refusal of a request that would not be granted in time for its deadline; None if it may wait."""
        rate, left_s = self.tokens_per_second(request.lane, now_s), request.deadline_s - now_s
        allowed_s = _MAX_WAIT_FRACTION * left_s
        if not rate or (wait_s := self._queue.expected_wait_s(request, rate)) <= allowed_s:
            return None
        message = f"estimated queue wait {wait_s:.1f} s exceeds the {max(0.0, allowed_s):.1f} s that the deadline allows"
        return _overloaded(message, wait_s)

    def _shed(self, request: QueuedRequest, now_s: float) -> ServeError:
        return _overloaded("shed: the queue is full of requests of the same or a higher priority", self._drained_in_s(request.lane, now_s))

    def _timed_out(self, request: QueuedRequest, now_s: float) -> ServeError:
        waited_s = now_s - request.arrival_s
        return _overloaded(f"no replica became free within {waited_s:.1f} s", self._drained_in_s(request.lane, now_s))

    def _drained_in_s(self, lane: Lane, now_s: float) -> float:
        """Returns the seconds until a lane's queue is empty at its present rate; 1 if the rate is unknown."""
        rate, (_, tokens) = self.tokens_per_second(lane, now_s), self._queue.depth(lane)
        return tokens / rate if rate else 1.0


def _queued_request(gateway_id: str, lease_id: int, demand: Demand, now_s: float, slack_s: float = 0.0) -> QueuedRequest:
    """Returns the queue entry of a request. slack_s: how long before its deadline it must be granted."""
    terms = demand.terms
    return QueuedRequest(
        key=(gateway_id, lease_id),
        lane=(demand.pool, demand.model),
        tenant=terms.tenant,
        weight=terms.weight,
        priority=terms.priority,
        prompt_tokens=demand.prompt_tokens,
        max_output_tokens=demand.output_tokens,
        arrival_s=now_s - terms.waited_s,
        deadline_s=now_s + terms.time_left_s - slack_s,
    )


def _gateway_of(request: QueuedRequest) -> str:
    return request.key[0]


def _overloaded(message: str, wait_s: float) -> ServeError:
    retry_s = min(max(wait_s, MIN_RETRY_S), MAX_RETRY_S) if math.isfinite(wait_s) else MAX_RETRY_S
    error = ServeError(Reason.OVERLOADED, message, {}, retry_s)
    return replace(error, metadata={"expected_wait_s": f"{wait_s:.1f}"}) if math.isfinite(wait_s) else error
