"""What becomes of a request for a replica: granted at once, granted after it waited its turn, or refused.

Theory of operation: a request is granted at once where a replica has room and nobody waits for one. Else it waits in the fair queue of its
pool and model, and each place that comes free goes to the queue's next. It leaves without a replica in three ways: it is shed for a more
important one, its time is over, or nothing can serve it any more. Every request gets exactly one final answer; `Queued` is not one.

BULK requests may have to wait though replicas have room, so that others find a batch that is not full of them (`bulk_share`); others pass
them then.

While a more important request waits, a running BULK request may be asked to give way. Only its gateway knows whether it has a token out;
if so the question is not answered, else the request comes back and waits again.
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
from neox_serve.core.scheduling.refusal import LONGEST_RETRY_S, SHORTEST_RETRY_S
from neox_serve.core.scheduling.routing import RoutingFailure
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

_TRUST = 0.75
"""The part of the time left that an expected wait may fill: who waits in vain is told so late, and took another's chance."""
_FORGETTING = 0.1
"""How much the newest request counts in how long a token takes."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; its final answer follows."""


@dataclass(frozen=True, slots=True)
class Preempt:
    """A running request should come back and wait, if it has no token out yet."""


Outcome = Grant | Queued | Preempt | ServeError
"""What a gateway can be told about a request. All but `Queued` and `Preempt` are final."""


@dataclass(frozen=True, slots=True)
class Notification:
    """Something to tell a gateway of one of its requests."""

    gateway_id: str
    lease_id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Running:
    """A request that was granted a replica, with what was charged for it."""

    waiting: QueuedRequest
    charged: float
    granted_s: float


class Admissions:
    """All requests for replicas, from all gateways. waking: lanes whose requests wait where there is no replica, since one will come.

    bulk: how much of replicas BULK may take; None: all of it.
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
        """Who waits, to look at."""
        return self._queue

    def ask(self, gateway_id: str, lease_id: int, demand: Demand, now_s: float) -> list[Notification]:
        """A request for a replica. Returns what is to be told now, of it and of others."""
        waiting = _waiting(gateway_id, lease_id, demand, now_s, self._slack_s(demand))
        if not demand.terms.waited_s and not demand.excluded:
            self._meter.record_arrival(waiting, self._queue.expected_output(waiting.tenant, waiting.max_output_tokens))
        if self._is_next(waiting, now_s):
            answer = self._state.try_admit(gateway_id, lease_id, demand)
            if isinstance(answer, Grant):
                self._granted(waiting, now_s)
                return [Notification(gateway_id, lease_id, answer)]
            if answer is not RoutingFailure.FULL and not self._will_wake(waiting, demand):
                return [Notification(gateway_id, lease_id, self._state.refuse(answer, demand, now_s))]
        if not self._limits.max_requests:
            return [Notification(gateway_id, lease_id, self._state.refuse(RoutingFailure.FULL, demand, now_s))]
        if (late := self._too_late(waiting, now_s)) is not None:
            return [Notification(gateway_id, lease_id, late)]
        return self._wait(waiting, demand, now_s)

    def settle(self, gateway_id: str, settled: Settled, now_s: float) -> None:
        """A request has ended, or is given up before it got a replica; one that is not known is ignored."""
        key = (gateway_id, settled.lease_id)
        if self._queue.remove(key) is not None:
            del self._demands[key]
        self._state.settle(gateway_id, [settled.lease_id])
        running = self._running.pop(key, None)
        if running is not None:
            waiting = running.waiting
            self._share.ended(waiting, now_s)
            self._queue.charge_end(waiting, running.charged, settled.cached_tokens, settled.output_tokens)
            served = waiting.prompt_tokens + settled.output_tokens
            self._rates.setdefault(waiting.lane, DrainRate()).add(served, now_s)
            if settled.timings is not None:
                self._meter.record_end(waiting, settled.timings)
            if settled.output_tokens:
                self._note_speed(waiting.lane, (now_s - running.granted_s) / settled.output_tokens)

    def next(self, now_s: float) -> list[Notification]:
        """Grants what has come free to those that wait."""
        answers: list[Notification] = []
        for lane in self._queue.lanes():
            while self._state.has_room(*lane):
                waiting = self._queue.pop(lane, now_s, skip_bulk=self._holds_bulk(lane, now_s))
                if waiting is None:
                    break
                answers.append(self._grant(waiting, now_s))
        return answers

    def expire(self, now_s: float) -> list[Notification]:
        """Refuses those whose time is over."""
        return [self._refused(waiting, self._time_is_over(waiting, now_s)) for waiting in self._queue.expire(now_s)]

    def drop_gateway_queue(self, gateway_id: str) -> None:
        """A gateway's stream ended: what waited of it is asked for again, or has gone."""
        for waiting in tuple(self._queue.waiting()):
            if _gateway_of(waiting) == gateway_id:
                self._queue.remove(waiting.key)
                del self._demands[waiting.key]

    def forget(self, gateway_ids: tuple[str, ...], now_s: float) -> None:
        """Gateways that are gone for good; what was charged for their requests stands."""
        for key in [key for key, running in self._running.items() if _gateway_of(running.waiting) in gateway_ids]:
            self._share.ended(self._running.pop(key).waiting, now_s)

    def tokens_per_second(self, lane: Lane, now_s: float) -> float | None:
        """How fast a lane's requests are served; None where that is not known yet."""
        rate = self._rates.get(lane)
        return rate.tokens_per_second(now_s) if rate else None

    def expected_wait_s(self, demand: Demand, now_s: float) -> float | None:
        """How long a request would wait now; 0 where a replica has room and nobody waits, None where it cannot be told."""
        waiting = _waiting("", 0, demand, now_s)
        if self._is_next(waiting, now_s) and self._state.has_room(demand.pool, demand.model):
            return 0.0
        rate = self.tokens_per_second(waiting.lane, now_s)
        return None if not rate else self._queue.expected_wait_s(waiting, rate)

    def tenants(self, most: int) -> tuple[TenantView, ...]:
        """The tenants that have requests, the busiest first."""
        sums: dict[str, list[int]] = {}
        for place, waiting in self._all_requests():
            counts = sums.setdefault(waiting.tenant, [0, 0, 0, 0])
            counts[place] += 1
            counts[place + 1] += waiting.tokens
        busiest = sorted(sums.items(), key=lambda item: (-item[1][1] - item[1][3], item[0]))[:most]
        return tuple(TenantView(name, c[0], c[1], c[2], c[3], self._queue.counter(name)) for name, c in busiest)

    def demand(self, now_s: float) -> dict[Pool, PoolDemand]:
        """What is asked of each pool: how much has come since the question before, what waits and what runs."""
        queue = ((waiting, self._queue.expected_output(waiting.tenant, waiting.max_output_tokens)) for waiting in self._queue.waiting())
        return self._meter.snapshot(self._state.view(now_s).replicas, queue, now_s)

    # Inside

    def _will_wake(self, waiting: QueuedRequest, demand: Demand) -> bool:
        return waiting.lane in self._waking and not demand.excluded

    def _is_next(self, waiting: QueuedRequest, now_s: float) -> bool:
        """Whether a request that comes now need not wait for others' turns, or for BULK's."""
        held = self._holds_bulk(waiting.lane, now_s)
        return not (held and waiting.priority is PriorityClass.BULK) and not self._queue.any_waits(waiting.lane, skip_bulk=held)

    def _holds_bulk(self, lane: Lane, now_s: float) -> bool:
        """Whether BULK must wait though there are replicas."""
        replicas = self._state.ready_count(*lane)
        return bool(replicas) and not self._share.has_room(lane, replicas, now_s)

    def _all_requests(self) -> Iterator[tuple[int, QueuedRequest]]:
        """Those that run, with 0, and those that wait, with 2."""
        for running in self._running.values():
            yield 0, running.waiting
        for waiting in self._queue.waiting():
            yield 2, waiting

    def _wait(self, waiting: QueuedRequest, demand: Demand, now_s: float) -> list[Notification]:
        self._demands[waiting.key] = demand
        shed = self._queue.put(waiting, now_s)
        answers = [] if waiting in shed else [Notification(*waiting.key, Queued())]
        answers += [self._refused(one, self._shed(one, now_s)) for one in shed]
        return answers + self._preemptions(waiting)

    def _note_speed(self, lane: Lane, seconds_per_token: float) -> None:
        before = self._seconds_per_token.get(lane, seconds_per_token)
        self._seconds_per_token[lane] = before + _FORGETTING * (seconds_per_token - before)

    def _slack_s(self, demand: Demand) -> float:
        """How long before its deadline a request must have its turn: what it will take then."""
        expected = self._queue.expected_output(demand.terms.tenant, demand.output_tokens)
        return expected * self._seconds_per_token.get((demand.pool, demand.model), 0.0)

    def _preemptions(self, waiting: QueuedRequest) -> list[Notification]:
        """One running BULK request is asked for each more important one that waits, the newest first."""
        bulk = self._bulk.get(waiting.lane, [])
        while waiting.priority < PriorityClass.BULK and bulk:
            key = bulk.pop()
            if key in self._running:
                return [Notification(*key, Preempt())]
        return []

    def _granted(self, waiting: QueuedRequest, now_s: float) -> None:
        self._running[waiting.key] = _Running(waiting, self._queue.charge_dispatch(waiting), now_s)
        self._share.began(waiting, now_s)
        if waiting.priority is PriorityClass.BULK:
            bulk = self._bulk.setdefault(waiting.lane, [])
            bulk.append(waiting.key)
            if len(bulk) > 2 * len(self._running):
                self._bulk[waiting.lane] = [key for key in bulk if key in self._running]

    def _grant(self, waiting: QueuedRequest, now_s: float) -> Notification:
        gateway_id, lease_id = waiting.key
        demand = self._demands.pop(waiting.key)
        answer = self._state.try_admit(gateway_id, lease_id, demand)
        if isinstance(answer, Grant):
            self._granted(waiting, now_s)
            return Notification(gateway_id, lease_id, answer)
        return Notification(gateway_id, lease_id, self._state.refuse(answer, demand, now_s))

    def _refused(self, waiting: QueuedRequest, error: ServeError) -> Notification:
        del self._demands[waiting.key]
        return Notification(*waiting.key, error)

    def _too_late(self, waiting: QueuedRequest, now_s: float) -> ServeError | None:
        """Why it makes no sense to wait: its deadline comes before its turn."""
        rate, left_s = self.tokens_per_second(waiting.lane, now_s), waiting.deadline_s - now_s
        if not rate or (wait_s := self._queue.expected_wait_s(waiting, rate)) <= _TRUST * left_s:
            return None
        message = f"its turn would come in about {wait_s:.1f} s, and for its deadline it must have it in {max(0.0, left_s):.1f} s"
        return _overloaded(message, wait_s)

    def _shed(self, waiting: QueuedRequest, now_s: float) -> ServeError:
        return _overloaded("more important requests take all the room there is to wait", self._drained_in_s(waiting.lane, now_s))

    def _time_is_over(self, waiting: QueuedRequest, now_s: float) -> ServeError:
        waited_s = now_s - waiting.came_s
        return _overloaded(f"no replica has come free in {waited_s:.1f} s", self._drained_in_s(waiting.lane, now_s))

    def _drained_in_s(self, lane: Lane, now_s: float) -> float:
        """When all that waits in a lane has gone, as fast as it goes now."""
        rate, (_, tokens) = self.tokens_per_second(lane, now_s), self._queue.depth(lane)
        return tokens / rate if rate else 1.0


def _waiting(gateway_id: str, lease_id: int, demand: Demand, now_s: float, slack_s: float = 0.0) -> QueuedRequest:
    """slack_s: how long before its deadline it must have its turn."""
    terms = demand.terms
    return QueuedRequest(
        key=(gateway_id, lease_id),
        lane=(demand.pool, demand.model),
        tenant=terms.tenant,
        weight=terms.weight,
        priority=terms.priority,
        prompt_tokens=demand.prompt_tokens,
        max_output_tokens=demand.output_tokens,
        came_s=now_s - terms.waited_s,
        deadline_s=now_s + terms.time_left_s - slack_s,
    )


def _gateway_of(waiting: QueuedRequest) -> str:
    return waiting.key[0]


def _overloaded(message: str, wait_s: float) -> ServeError:
    retry_s = min(max(wait_s, SHORTEST_RETRY_S), LONGEST_RETRY_S) if math.isfinite(wait_s) else LONGEST_RETRY_S
    error = ServeError(Reason.OVERLOADED, message, {}, retry_s)
    return replace(error, metadata={"expected_wait_s": f"{wait_s:.1f}"}) if math.isfinite(wait_s) else error
