"""A pool of simulated engines behind the router's own code, under a scaling policy.

Requests pass the router's fair queue and its choice of a replica (neox_serve.core), engines work in simulated time, and once an interval
the policy is asked with signals as old as metrics are. Replicas take their time to start, drain before they go, and may die.
Everything is deterministic by seed.
"""

import gc
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cache
from itertools import count
from random import Random

from autoscaling.policies.decision import Policy, State
from autoscaling.signals import PoolSignals
from autoscaling.simulator.config import Setting
from autoscaling.simulator.engine import Request, SimulatedEngine, Urgency
from autoscaling.simulator.result import Action, Outcome
from autoscaling.simulator.signal_collector import Meter
from neox_serve.core.cluster import Demand, Replica, ReplicaPhase, Settled, Terms
from neox_serve.core.errors import ServeError
from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.scheduling.admissions import Admissions, Notification
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

_GATEWAY, _MODEL = "g", "m"
_PRIORITIES = {Urgency.DEFAULT: PriorityClass.DEFAULT, Urgency.BULK: PriorityClass.BULK}


class _Phase(Enum):
    STARTING = auto()
    READY = auto()
    DRAINING = auto()


class _Event(Enum):
    STEPS_DONE = auto()
    READY = auto()
    TICK = auto()
    FAILURE = auto()
    DRAINED = auto()


@dataclass(slots=True, eq=False)
class _SimulatedReplica:
    name: str
    began_s: float
    engine: SimulatedEngine
    phase: _Phase = _Phase.STARTING
    version: int = 0
    stepping: bool = False
    ends_s: float = 0.0
    news: Iterator[int] = field(default_factory=lambda: count(1))


def simulate(
    requests: Iterable[Request],
    policy: Policy,
    setting: Setting,
    duration_s: float,
    progress: Callable[[float], None] = lambda _seconds: None,
) -> Outcome:
    """Serves requests, in the order of their at_s, until all that came within duration_s have ended. progress: told each tick."""
    with _uncollected():
        return _Run(policy, setting, duration_s, progress).go(requests)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector from going through what is in flight again and again, a seventh of the time: it would find nothing."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


class _Run:
    def __init__(self, policy: Policy, setting: Setting, duration_s: float, progress: Callable[[float], None]) -> None:
        self._policy = policy
        self._policy_state: State = {}
        self._setting = setting
        self._progress = progress
        self._rng = Random(setting.seed)
        self._router = ClusterState(grace_s=0.0, started_s=-1.0, rng=Random(setting.seed + 1), policy=setting.routing)
        self._router.connect_gateway(_GATEWAY, (), 0, 0.0)
        waking = frozenset({(Pool.GENERATION, _MODEL)}) if setting.spec.min_replicas == 0 else frozenset()
        self._admissions = Admissions(self._router, setting.queue, waking=waking)
        self._outcome = Outcome(duration_s, setting.startup_s)
        self._events: list[tuple[float, int, _Event, _SimulatedReplica | None, int]] = []
        self._order = count()
        self._names = count()
        self._leases = count(1)
        self._replicas: dict[str, _SimulatedReplica] = {}
        self._terms = cache(self._fresh_terms)
        self._open: dict[int, Request] = {}
        self._placed: dict[int, str] = {}
        self._meter = Meter(setting.spec.targets)
        self._delayed: deque[tuple[float, PoolSignals]] = deque()
        self._startup_s: float | None = None
        self._ticked_s = 0.0
        self.target = setting.initial_replicas
        for _ in range(setting.initial_replicas):
            self._enlist(self._new_replica(0.0), 0.0)

    def go(self, requests: Iterable[Request]) -> Outcome:
        self._at(self._setting.interval_s, _Event.TICK)
        self._plan_failure(0.0)
        for request in requests:
            if request.at_s > self._outcome.duration_s:
                break
            self._run_until(request.at_s)
            self._arrive(request, request.at_s)
        self._run_until(self._outcome.duration_s)
        # What is left is answered by the replicas that are there; it costs nothing more, and nobody decides any more.
        for replica in self._replicas.values():
            self._charge(replica, self._outcome.duration_s)
        while self._open and self._events:
            self._next()
        # All replicas have died, and nobody starts another.
        for request in list(self._open.values()):
            self._refuse(request)
        self._outcome.sort()
        return self._outcome

    # Time

    def _at(self, when_s: float, event: _Event, replica: _SimulatedReplica | None = None) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), event, replica, replica.version if replica else 0))

    def _run_until(self, until_s: float) -> None:
        events = self._events
        while events and events[0][0] <= until_s:
            self._next()

    def _next(self) -> None:
        now_s, _, event, replica, version = heapq.heappop(self._events)
        if event is _Event.STEPS_DONE:
            if replica is not None and replica.version == version:
                self._steps_done(replica, now_s)
        elif event is _Event.TICK:
            self._tick(now_s)
        elif event is _Event.FAILURE:
            self._fail(now_s)
        elif replica is not None and replica.name in self._replicas:
            if event is _Event.READY and replica.phase is _Phase.STARTING:
                self._enlist(replica, now_s)
                self._startup_s = now_s - replica.began_s
                self._tell(self._admissions.next(now_s), now_s)
            elif event is _Event.DRAINED:
                self._lose(replica, now_s)

    # Requests

    def _arrive(self, request: Request, now_s: float) -> None:
        self._meter.came(request)
        self._outcome.prompt_tokens += request.prompt_tokens
        self._ask(request, now_s)

    def _ask(self, request: Request, now_s: float) -> None:
        """For a replica. A request that has lost its own comes here again."""
        request.lease_id = next(self._leases)
        self._open[request.lease_id] = request
        self._meter.waits(request)
        terms = self._terms(request.tenant, request.urgency)
        if now_s > request.at_s:
            terms = replace(terms, time_left_s=terms.time_left_s - (now_s - request.at_s))
        demand = Demand(
            Pool.GENERATION,
            _MODEL,
            request.prompt_tokens,
            request.output_tokens,
            terms=terms,
            blocks=request.blocks,
            block_tokens=self._setting.shape.block_tokens if request.blocks else 0,
        )
        self._tell(self._admissions.ask(_GATEWAY, request.lease_id, demand, now_s), now_s)

    def _fresh_terms(self, tenant: int, urgency: Urgency) -> Terms:
        """Of a request that has just come."""
        left_s = self._setting.timeout_s if urgency is not Urgency.BULK else float("inf")
        return Terms(tenant=str(tenant), priority=_PRIORITIES[urgency], time_left_s=left_s)

    def _tell(self, answers: list[Notification], now_s: float) -> None:
        for answer in answers:
            request = self._open.get(answer.lease_id)
            if request is None:
                continue
            if isinstance(answer.outcome, Grant):
                self._meter.waits_no_more(request)
                self._give(request, self._replicas[answer.outcome.replica_id], now_s)
            elif isinstance(answer.outcome, ServeError):
                self._meter.waits_no_more(request)
                self._refuse(request)
            # Otherwise it waits, or is BULK and asked to make room, which simulated engines do for nothing that they have begun.

    def _refuse(self, request: Request) -> None:
        del self._open[request.lease_id]
        self._outcome.refused += request.at_s >= self._setting.warmup_s
        self._note(request, float("inf"), float("inf"))

    def _give(self, request: Request, replica: _SimulatedReplica, now_s: float) -> None:
        request.given_s = now_s
        request.held_tokens = 0
        self._placed[request.lease_id] = replica.name
        replica.engine.submit(request)
        if not replica.stepping:
            self._begin(replica, now_s)
        else:
            ends_s = replica.engine.cut(now_s)
            if ends_s < replica.ends_s:
                replica.version += 1
                replica.ends_s = ends_s
                self._at(ends_s, _Event.STEPS_DONE, replica)

    def _begin(self, replica: _SimulatedReplica, now_s: float) -> None:
        replica.ends_s = replica.engine.begin(now_s)
        replica.stepping = True
        replica.version += 1
        self._at(replica.ends_s, _Event.STEPS_DONE, replica)

    def _steps_done(self, replica: _SimulatedReplica, now_s: float) -> None:
        ended = replica.engine.finish(now_s)
        replica.stepping = False
        if self._setting.shape.prefix_blocks:
            self._tell_blocks(replica)
        for request in ended:
            self._end(request, now_s)
        if ended and len(self._admissions.queue):
            self._tell(self._admissions.next(now_s), now_s)
        if replica.stepping:
            return
        if not replica.engine.idle:
            self._begin(replica, now_s)
        elif replica.phase is _Phase.DRAINING:
            self._remove(replica, now_s)

    def _tell_blocks(self, replica: _SimulatedReplica) -> None:
        news = replica.engine.take_news()
        if news.stored or news.removed:
            self._router.take_block_news(replica.name, 0, BlockNews(next(replica.news), news.stored, news.removed))

    def _end(self, request: Request, now_s: float) -> None:
        del self._open[request.lease_id]
        del self._placed[request.lease_id]
        self._admissions.settle(_GATEWAY, Settled(request.lease_id, request.cached_tokens, request.output_tokens), now_s)
        self._outcome.output_tokens += request.output_tokens
        self._outcome.cached_tokens += request.cached_tokens
        self._outcome.preemptions += request.preemptions
        tpot_s = (now_s - request.first_token_s) / (request.output_tokens - 1) if request.output_tokens > 1 else 0.0
        self._meter.ended(request, tpot_s)
        self._note(request, request.first_token_s - request.at_s, tpot_s)

    def _note(self, request: Request, ttft_s: float, tpot_s: float) -> None:
        if request.at_s < self._setting.warmup_s:
            return
        if request.urgency is Urgency.BULK:
            self._outcome.bulk_ended += 1
            return
        self._outcome.at_s.append(request.at_s)
        self._outcome.ttft_s.append(ttft_s)
        self._outcome.tpot_s.append(tpot_s)
        self._outcome.tenants.append(request.tenant)

    # Replicas

    def _new_replica(self, now_s: float) -> _SimulatedReplica:
        replica = _SimulatedReplica(f"r{next(self._names)}", now_s, SimulatedEngine(self._setting.shape, self._meter.first_tokens))
        self._replicas[replica.name] = replica
        return replica

    def _start_replica(self, now_s: float) -> None:
        replica = self._new_replica(now_s)
        jitter = 1 + self._setting.startup_jitter_fraction * self._rng.uniform(-1, 1)
        self._at(now_s + self._setting.startup_s * jitter, _Event.READY, replica)

    def _enlist(self, replica: _SimulatedReplica, now_s: float) -> None:
        replica.phase = _Phase.READY
        most = self._setting.spec.capacity.max_requests
        self._router.connect_replica(Replica(replica.name, Pool.GENERATION, _MODEL, f"{replica.name}:1", most), 0, now_s)
        if self._setting.shape.prefix_blocks:
            self._router.take_block_news(replica.name, 0, BlockNews(0, restarts=True))

    def _drain(self, replica: _SimulatedReplica, now_s: float) -> None:
        replica.phase = _Phase.DRAINING
        self._router.change_phase(replica.name, ReplicaPhase.DRAINING)
        if replica.engine.idle:
            self._remove(replica, now_s)
        else:
            self._at(now_s + self._setting.drain_timeout_s, _Event.DRAINED, replica)

    def _remove(self, replica: _SimulatedReplica, now_s: float) -> None:
        if replica.phase is not _Phase.STARTING:
            self._router.disconnect_replica(replica.name, 0, now_s)
            self._router.expire(now_s)
        self._charge(replica, now_s)
        replica.version += 1
        del self._replicas[replica.name]

    def _charge(self, replica: _SimulatedReplica, now_s: float) -> None:
        began_s, ended_s = max(replica.began_s, self._setting.warmup_s), min(now_s, self._outcome.duration_s)
        self._outcome.gpu_s += max(0.0, ended_s - began_s) * self._setting.spec.gpus_per_replica

    def _lose(self, replica: _SimulatedReplica, now_s: float) -> None:
        """A replica goes with requests on it, which go on elsewhere."""
        lost = replica.engine.stop()
        self._remove(replica, now_s)
        for request in lost:
            del self._open[request.lease_id]
            del self._placed[request.lease_id]
            self._admissions.settle(_GATEWAY, Settled(request.lease_id), now_s)
        for request in lost:
            self._ask(request, now_s)

    def _plan_failure(self, now_s: float) -> None:
        rate = self._setting.failures_per_gpu_hour * self._setting.spec.gpus_per_replica * max(1, len(self._replicas)) / 3600
        if rate:
            self._at(now_s + self._rng.expovariate(rate), _Event.FAILURE)

    def _fail(self, now_s: float) -> None:
        if now_s > self._outcome.duration_s:
            return
        alive = [replica for replica in self._replicas.values() if replica.phase is not _Phase.STARTING]
        if alive:
            self._lose(self._rng.choice(alive), now_s)
        self._plan_failure(now_s)

    # Scaling

    def _tick(self, now_s: float) -> None:
        if now_s > self._outcome.duration_s:
            return
        self._tell(self._admissions.expire(now_s), now_s)
        signals = self._measure(now_s)
        self._delayed.append((now_s, signals))
        while len(self._delayed) > 1 and self._delayed[1][0] <= now_s - self._setting.metric_delay_s:
            self._delayed.popleft()
        self._decide(self._delayed[0][1], now_s)
        self._progress(now_s)
        self._at(now_s + self._setting.interval_s, _Event.TICK)

    def _decide(self, signals: PoolSignals, now_s: float) -> None:
        decision, self._policy_state = self._policy(signals, self._setting.spec, self._policy_state, now_s)
        if decision.replicas != self.target:
            if now_s >= self._setting.warmup_s:
                self._outcome.actions.append(Action(now_s, self.target, decision.replicas, decision.reason))
            self.target = decision.replicas
        live = [replica for replica in self._replicas.values() if replica.phase is not _Phase.DRAINING]
        for _ in range(self.target - len(live)):
            self._start_replica(now_s)
        if len(live) > self.target:
            for replica in _fewest_missed(live)[: len(live) - self.target]:
                if replica.phase is _Phase.STARTING:
                    self._remove(replica, now_s)
                else:
                    self._drain(replica, now_s)

    def _measure(self, now_s: float) -> PoolSignals:
        seconds = now_s - self._ticked_s
        self._ticked_s = now_s
        by_phase = {phase: [replica for replica in self._replicas.values() if replica.phase is phase] for phase in _Phase}
        ready = by_phase[_Phase.READY]
        working = [*ready, *by_phase[_Phase.DRAINING]]
        signals = PoolSignals(
            ready_replicas=len(ready),
            starting_replicas=len(by_phase[_Phase.STARTING]),
            draining_replicas=len(by_phase[_Phase.DRAINING]),
            by_class=self._meter.demand(seconds),
            running_requests=sum(replica.engine.requests for replica in working),
            running_tokens=sum(replica.engine.held_tokens for replica in working),
            prefill_backlog_tokens=sum(replica.engine.prefill_tokens for replica in working),
            kv_usage_fraction=sum(replica.engine.kv_usage_fraction for replica in ready) / len(ready) if ready else 0.0,
            startup_s=self._startup_s,
            **self._meter.attained(now_s)._asdict(),
        )
        self._outcome.timeline.note(now_s, signals)
        return signals


def _fewest_missed(live: list[_SimulatedReplica]) -> list[_SimulatedReplica]:
    """Those first that have the least to lose: the newest that are still starting, then those with the fewest requests."""
    return sorted(live, key=lambda one: (one.phase is not _Phase.STARTING, one.engine.requests, -one.began_s))
