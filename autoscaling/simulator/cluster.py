"""A pool of simulated engines behind the real router's scheduling code, sized by a scaling policy.

Requests pass the fair queue and the replica choice of `neox_serve.core`, engines run in simulated time, and the policy is called once per
interval with delayed signals. Replicas take time to start, drain before they stop, and may fail. Everything is deterministic by seed.
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
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.engine import Request, SimulatedEngine, Urgency
from autoscaling.simulator.result import Action, SimulationResult
from autoscaling.simulator.signal_collector import SignalCollector
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
    cache_versions: Iterator[int] = field(default_factory=lambda: count(1))


def simulate(
    requests: Iterable[Request],
    policy: Policy,
    config: SimulationConfig,
    duration_s: float,
    progress: Callable[[float], None] = lambda _seconds: None,
) -> SimulationResult:
    """Simulates the pool until all requests that arrive within `duration_s` have ended.

    `requests` must be sorted by arrival. `progress` is called with the simulated time in seconds, once per interval.
    """
    with _garbage_collection_disabled():
        return _Simulation(policy, config, duration_s, progress).run(requests)


@contextmanager
def _garbage_collection_disabled() -> Iterator[None]:
    """Disables the garbage collector, which would spend a seventh of the time on live objects without finding garbage."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


class _Simulation:
    def __init__(self, policy: Policy, config: SimulationConfig, duration_s: float, progress: Callable[[float], None]) -> None:
        self._policy = policy
        self._policy_state: State = {}
        self._config = config
        self._progress = progress
        self._rng = Random(config.seed)
        self._router = ClusterState(grace_s=0.0, started_s=-1.0, rng=Random(config.seed + 1), policy=config.routing)
        self._router.connect_gateway(_GATEWAY, (), 0, 0.0)
        waking = frozenset({(Pool.GENERATION, _MODEL)}) if config.spec.min_replicas == 0 else frozenset()
        self._admissions = Admissions(self._router, config.queue, waking=waking)
        self._result = SimulationResult(duration_s, config.startup_s)
        self._events: list[tuple[float, int, _Event, _SimulatedReplica | None, int]] = []
        self._order = count()
        self._names = count()
        self._leases = count(1)
        self._replicas: dict[str, _SimulatedReplica] = {}
        self._terms = cache(self._fresh_terms)
        self._open: dict[int, Request] = {}
        self._placed: dict[int, str] = {}
        self._collector = SignalCollector(config.spec.targets)
        self._recent_signals: deque[tuple[float, PoolSignals]] = deque()
        self._startup_s: float | None = None
        self._ticked_s = 0.0
        self.target = config.initial_replicas
        for _ in range(config.initial_replicas):
            self._become_ready(self._new_replica(0.0), 0.0)

    def run(self, requests: Iterable[Request]) -> SimulationResult:
        self._at(self._config.interval_s, _Event.TICK)
        self._plan_failure(0.0)
        for request in requests:
            if request.at_s > self._result.duration_s:
                break
            self._run_until(request.at_s)
            self._arrive(request, request.at_s)
        self._run_until(self._result.duration_s)
        # The remaining requests are completed by the existing replicas, without further cost or scaling decisions.
        for replica in self._replicas.values():
            self._charge(replica, self._result.duration_s)
        while self._open and self._events:
            self._next()
        # If all replicas have failed, the remaining requests are refused.
        for request in list(self._open.values()):
            self._refuse(request)
        self._result.sort()
        return self._result

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
                self._become_ready(replica, now_s)
                self._startup_s = now_s - replica.began_s
                self._apply(self._admissions.grant_next(now_s), now_s)
            elif event is _Event.DRAINED:
                self._lose(replica, now_s)

    # Requests

    def _arrive(self, request: Request, now_s: float) -> None:
        self._collector.arrived(request)
        self._result.prompt_tokens += request.prompt_tokens
        self._request_admission(request, now_s)

    def _request_admission(self, request: Request, now_s: float) -> None:
        """Asks the router for a replica. A request that has lost its replica is admitted again."""
        request.lease_id = next(self._leases)
        self._open[request.lease_id] = request
        self._collector.began_waiting(request)
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
            block_tokens=self._config.shape.block_tokens if request.blocks else 0,
        )
        self._apply(self._admissions.admit(_GATEWAY, request.lease_id, demand, now_s), now_s)

    def _fresh_terms(self, tenant: int, urgency: Urgency) -> Terms:
        """Returns the terms of a request that has just arrived."""
        left_s = self._config.timeout_s if urgency is not Urgency.BULK else float("inf")
        return Terms(tenant=str(tenant), priority=_PRIORITIES[urgency], time_left_s=left_s)

    def _apply(self, notifications: list[Notification], now_s: float) -> None:
        for notification in notifications:
            request = self._open.get(notification.lease_id)
            if request is None:
                continue
            if isinstance(notification.outcome, Grant):
                self._collector.ended_waiting(request)
                self._dispatch(request, self._replicas[notification.outcome.replica_id], now_s)
            elif isinstance(notification.outcome, ServeError):
                self._collector.ended_waiting(request)
                self._refuse(request)
            # Otherwise the request waits, or it is BULK and should be preempted, which the simulation does not do.

    def _refuse(self, request: Request) -> None:
        del self._open[request.lease_id]
        self._result.refused += request.at_s >= self._config.warmup_s
        self._record(request, float("inf"), float("inf"))

    def _dispatch(self, request: Request, replica: _SimulatedReplica, now_s: float) -> None:
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
        if self._config.shape.prefix_blocks:
            self._report_cache_changes(replica)
        for request in ended:
            self._end(request, now_s)
        if ended and len(self._admissions.queue):
            self._apply(self._admissions.grant_next(now_s), now_s)
        if replica.stepping:
            return
        if not replica.engine.idle:
            self._begin(replica, now_s)
        elif replica.phase is _Phase.DRAINING:
            self._remove(replica, now_s)

    def _report_cache_changes(self, replica: _SimulatedReplica) -> None:
        changes = replica.engine.take_changes()
        if changes.stored or changes.removed:
            self._router.take_block_news(replica.name, 0, BlockNews(next(replica.cache_versions), changes.stored, changes.removed))

    def _end(self, request: Request, now_s: float) -> None:
        del self._open[request.lease_id]
        del self._placed[request.lease_id]
        self._admissions.settle(_GATEWAY, Settled(request.lease_id, request.cached_tokens, request.output_tokens), now_s)
        self._result.output_tokens += request.output_tokens
        self._result.cached_tokens += request.cached_tokens
        self._result.preemptions += request.preemptions
        tpot_s = (now_s - request.first_token_s) / (request.output_tokens - 1) if request.output_tokens > 1 else 0.0
        self._collector.completed(request, tpot_s)
        self._record(request, request.first_token_s - request.at_s, tpot_s)

    def _record(self, request: Request, ttft_s: float, tpot_s: float) -> None:
        if request.at_s < self._config.warmup_s:
            return
        if request.urgency is Urgency.BULK:
            self._result.bulk_completed += 1
            return
        self._result.at_s.append(request.at_s)
        self._result.ttft_s.append(ttft_s)
        self._result.tpot_s.append(tpot_s)
        self._result.tenants.append(request.tenant)

    # Replicas

    def _new_replica(self, now_s: float) -> _SimulatedReplica:
        replica = _SimulatedReplica(f"r{next(self._names)}", now_s, SimulatedEngine(self._config.shape, self._collector.first_tokens))
        self._replicas[replica.name] = replica
        return replica

    def _start_replica(self, now_s: float) -> None:
        replica = self._new_replica(now_s)
        jitter = 1 + self._config.startup_jitter_fraction * self._rng.uniform(-1, 1)
        self._at(now_s + self._config.startup_s * jitter, _Event.READY, replica)

    def _become_ready(self, replica: _SimulatedReplica, now_s: float) -> None:
        replica.phase = _Phase.READY
        max_requests = self._config.spec.capacity.max_requests
        self._router.connect_replica(Replica(replica.name, Pool.GENERATION, _MODEL, f"{replica.name}:1", max_requests), 0, now_s)
        if self._config.shape.prefix_blocks:
            self._router.take_block_news(replica.name, 0, BlockNews(0, restarts=True))

    def _drain(self, replica: _SimulatedReplica, now_s: float) -> None:
        replica.phase = _Phase.DRAINING
        self._router.change_phase(replica.name, ReplicaPhase.DRAINING)
        if replica.engine.idle:
            self._remove(replica, now_s)
        else:
            self._at(now_s + self._config.drain_timeout_s, _Event.DRAINED, replica)

    def _remove(self, replica: _SimulatedReplica, now_s: float) -> None:
        if replica.phase is not _Phase.STARTING:
            self._router.disconnect_replica(replica.name, 0, now_s)
            self._router.expire(now_s)
        self._charge(replica, now_s)
        replica.version += 1
        del self._replicas[replica.name]

    def _charge(self, replica: _SimulatedReplica, now_s: float) -> None:
        began_s, ended_s = max(replica.began_s, self._config.warmup_s), min(now_s, self._result.duration_s)
        self._result.gpu_s += max(0.0, ended_s - began_s) * self._config.spec.gpus_per_replica

    def _lose(self, replica: _SimulatedReplica, now_s: float) -> None:
        """Removes a replica. Its requests continue on other replicas."""
        lost = replica.engine.stop()
        self._remove(replica, now_s)
        for request in lost:
            del self._open[request.lease_id]
            del self._placed[request.lease_id]
            self._admissions.settle(_GATEWAY, Settled(request.lease_id), now_s)
        for request in lost:
            self._request_admission(request, now_s)

    def _plan_failure(self, now_s: float) -> None:
        rate = self._config.failures_per_gpu_hour * self._config.spec.gpus_per_replica * max(1, len(self._replicas)) / 3600
        if rate:
            self._at(now_s + self._rng.expovariate(rate), _Event.FAILURE)

    def _fail(self, now_s: float) -> None:
        if now_s > self._result.duration_s:
            return
        alive = [replica for replica in self._replicas.values() if replica.phase is not _Phase.STARTING]
        if alive:
            self._lose(self._rng.choice(alive), now_s)
        self._plan_failure(now_s)

    # Scaling

    def _tick(self, now_s: float) -> None:
        if now_s > self._result.duration_s:
            return
        self._apply(self._admissions.expire(now_s), now_s)
        signals = self._measure(now_s)
        self._recent_signals.append((now_s, signals))
        while len(self._recent_signals) > 1 and self._recent_signals[1][0] <= now_s - self._config.metric_delay_s:
            self._recent_signals.popleft()
        self._decide(self._recent_signals[0][1], now_s)
        self._progress(now_s)
        self._at(now_s + self._config.interval_s, _Event.TICK)

    def _decide(self, signals: PoolSignals, now_s: float) -> None:
        decision, self._policy_state = self._policy(signals, self._config.spec, self._policy_state, now_s)
        if decision.replicas != self.target:
            if now_s >= self._config.warmup_s:
                self._result.actions.append(Action(now_s, self.target, decision.replicas, decision.reason))
            self.target = decision.replicas
        live = [replica for replica in self._replicas.values() if replica.phase is not _Phase.DRAINING]
        for _ in range(self.target - len(live)):
            self._start_replica(now_s)
        if len(live) > self.target:
            for replica in _in_removal_order(live)[: len(live) - self.target]:
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
            by_class=self._collector.demand(seconds),
            running_requests=sum(replica.engine.requests for replica in working),
            running_tokens=sum(replica.engine.held_tokens for replica in working),
            prefill_backlog_tokens=sum(replica.engine.prefill_tokens for replica in working),
            kv_usage_fraction=sum(replica.engine.kv_usage_fraction for replica in ready) / len(ready) if ready else 0.0,
            startup_s=self._startup_s,
            **self._collector.attained(now_s)._asdict(),
        )
        self._result.timeline.record(now_s, signals)
        return signals


def _in_removal_order(live: list[_SimulatedReplica]) -> list[_SimulatedReplica]:
    """Returns the replicas in the order in which they are removed: starting replicas, newest first, then those with the fewest requests."""
    return sorted(live, key=lambda one: (one.phase is not _Phase.STARTING, one.engine.requests, -one.began_s))
