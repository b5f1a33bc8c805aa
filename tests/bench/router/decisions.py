"""Decisions per second of the router's core, in one thread, with the events of a large cluster.

The simulated timeline is that of a busy cluster. Each replica serves 5 requests per second that take 40 s, so that 200 of its 256 slots are
in use. It reports its load every 0.25 s, and the changes of its cache after each request; a thousand replicas have a million blocks.
Gateways settle a few leases at a time. Every 250 s per replica, which is four times a second with 1,000 replicas, one of these events
occurs: a replica reconnects, drains and is replaced, or disappears and is replaced, or a gateway reconnects with all its leases. The
router's tick occurs every 0.1 s.

The time of the timeline is simulated. Only calls into the core are timed, with the garbage collector configured as in production.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, cycle
from random import Random

from neox_serve.core.cluster import Demand, Lease, Replica, ReplicaLoad, ReplicaPhase
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.types import Pool
from neox_serve.loadgen.summaries import percentile
from tests.bench.router.caches import BLOCK_TOKENS, Caches

_MODEL, _FULL_MODEL, _UNKNOWN_MODEL = "model", "full", "unknown"
_MAX_REQUESTS = 256
_IN_FLIGHT = 200
_REQUESTS_PER_REPLICA_S = 5.0
_GATEWAYS = 16
_SETTLED_TOGETHER = 4
_LOAD_INTERVAL_S = 0.25
_TICK_S = 0.1
_CHURN_INTERVAL_S = 250.0
_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class Decisions:
    """The result for one size of the cluster."""

    replicas: int
    """Number of replicas."""
    leases: int
    """Number of leases at the end."""
    blocks: int
    """Number of blocks in the index at the end."""
    outcomes: dict[str, int]
    """Number of decisions by outcome."""
    decisions_per_s: float
    """Number of decisions divided by the time of all calls into the core."""
    admit_fraction: float
    """Fraction of the time of all calls that was spent on decisions."""
    p50_s: float
    """Median duration of a decision, in seconds."""
    p99_s: float
    """99th percentile of the duration of a decision, in seconds."""
    highest_s: float
    """Maximum duration of a decision, in seconds."""


def measure(replicas: int, decisions: int) -> Decisions:
    """Fills a cluster with requests, then simulate its timeline for a number of decisions."""
    timeline = _Timeline(replicas)
    timeline.fill()
    return timeline.run(decisions)


class _Timeline:
    """A cluster and its events. One in ten replicas is fully occupied by requests of another model, and one in ten computes embeddings."""

    def __init__(self, replicas: int) -> None:
        self._rng = Random(replicas)
        self._caches = Caches(Random(replicas))
        self._state = ClusterState(grace_s=_GRACE_S, started_s=-60.0, rng=Random(1))
        self._now_s = 0.0
        self._busy_s = 0.0
        self._admit_s: list[float] = []
        self._outcomes: Counter[str] = Counter()
        self._ids = count(1)
        self._connections = count(1)
        self._connected: dict[str, int] = {}
        self._replicas = [self._new_replica(number) for number in range(replicas)]
        self._leases: dict[str, list[int]] = {f"gateway-{number}": [] for number in range(_GATEWAYS)}
        self._in_flight = 0
        self._changes = cycle((self._replica_returns, self._replica_drains, self._replica_vanishes, self._gateway_returns))

    def fill(self) -> None:
        """Connects all gateways and replicas, with the leases of a busy cluster."""
        for gateway_id in self._leases:
            self._state.connect_gateway(gateway_id, (), next(self._connections), self._now_s)
        for replica in self._replicas:
            self._connect(replica, full=True)
            for _ in range(_MAX_REQUESTS if replica.model == _FULL_MODEL else _IN_FLIGHT):
                self._adopt(replica)
        self._steady = self._in_flight

    def run(self, decisions: int) -> Decisions:
        """Process requests, and before each request the events that are due."""
        size = len(self._replicas)
        events = [
            _Repeated(self._report, _LOAD_INTERVAL_S / size),
            _Repeated(self._tick, _TICK_S),
            _Repeated(self._churn, _CHURN_INTERVAL_S / size),
        ]
        for _ in range(decisions):
            self._now_s += 1 / (_REQUESTS_PER_REPLICA_S * size)
            for event in events:
                event.catch_up(self._now_s)
            self._admit()
            self._settle()
        return self._summary()

    def _summary(self) -> Decisions:
        p50_s, p99_s, highest_s = (percentile(self._admit_s, fraction) for fraction in (0.5, 0.99, 1.0))
        return Decisions(
            replicas=len(self._replicas),
            leases=self._state.lease_count(),
            blocks=self._state.block_count(),
            outcomes=dict(self._outcomes),
            decisions_per_s=len(self._admit_s) / self._busy_s,
            admit_fraction=sum(self._admit_s) / self._busy_s,
            p50_s=p50_s,
            p99_s=p99_s,
            highest_s=highest_s,
        )

    # Gateways

    def _admit(self) -> None:
        gateway_id, lease_id, demand = self._any_gateway(), next(self._ids), self._any_demand()
        started_s = time.perf_counter()
        answer = self._state.admit(gateway_id, lease_id, demand, self._now_s)
        self._admit_s.append(time.perf_counter() - started_s)
        self._busy_s += self._admit_s[-1]
        if isinstance(answer, Grant):
            self._leases[gateway_id].append(lease_id)
            self._in_flight += 1
            if demand.blocks:
                self._tell_of_cache(answer.replica_id, demand.blocks)
        self._outcomes["granted" if isinstance(answer, Grant) else answer.reason.value] += 1

    def _settle(self) -> None:
        mine = self._leases[gateway_id := self._any_gateway()]
        if self._in_flight > self._steady and len(mine) >= _SETTLED_TOGETHER:
            ended = [mine.pop(self._rng.randrange(len(mine))) for _ in range(_SETTLED_TOGETHER)]
            self._timed(lambda: self._state.settle(gateway_id, ended))
            self._in_flight -= len(ended)

    def _gateway_returns(self) -> None:
        gateway_id = self._any_gateway()
        leases = self._state.leases(gateway_id)
        self._timed(lambda: self._state.connect_gateway(gateway_id, leases, next(self._connections), self._now_s))

    def _adopt(self, replica: Replica) -> None:
        gateway_id, lease_id = self._any_gateway(), next(self._ids)
        self._state.adopt(gateway_id, [Lease(lease_id, replica.replica_id, self._rng.randint(32, 2048))])
        if replica.model != _FULL_MODEL:
            self._leases[gateway_id].append(lease_id)
            self._in_flight += 1

    def _any_gateway(self) -> str:
        return self._rng.choice(list(self._leases))

    def _any_demand(self) -> Demand:
        model = self._rng.choices((_MODEL, _FULL_MODEL, _UNKNOWN_MODEL), (0.945, 0.05, 0.005))[0]
        pool = Pool.EMBEDDING if model == _MODEL and self._rng.random() < 0.1 else Pool.GENERATION
        excluded = (self._rng.choice(self._replicas).replica_id,) if self._rng.random() < 0.01 else ()
        blocks = self._caches.prompt() if pool is Pool.GENERATION else ()
        prompt_tokens = len(blocks) * BLOCK_TOKENS + self._rng.randint(1, BLOCK_TOKENS)
        return Demand(pool, model, prompt_tokens, self._rng.randint(16, 1024), excluded, blocks=blocks, block_tokens=BLOCK_TOKENS)

    # Replicas

    def _report(self) -> None:
        replica_id = self._rng.choice(self._replicas).replica_id
        load = ReplicaLoad(_IN_FLIGHT, 0, self._rng.random(), self._rng.uniform(500.0, 1500.0))
        self._timed(lambda: self._state.report_load(replica_id, load))

    def _tell_of_cache(self, replica_id: str, blocks: tuple[int, ...]) -> None:
        news, connection = self._caches.served(replica_id, blocks), self._connected[replica_id]
        self._timed(lambda: self._state.take_block_news(replica_id, connection, news))

    def _connect(self, replica: Replica, *, full: bool) -> None:
        connection = self._connected[replica.replica_id] = next(self._connections)
        self._timed(lambda: self._state.connect_replica(replica, connection, self._now_s))
        news = self._caches.started(replica.replica_id, full=full)
        self._timed(lambda: self._state.take_block_news(replica.replica_id, connection, news))

    def _replica_returns(self) -> None:
        connection = next(self._connections)
        replica = self._rng.choice(self._replicas)
        self._timed(lambda: self._state.connect_replica(replica, connection, self._now_s))
        self._timed(lambda: self._state.disconnect_replica(replica.replica_id, connection, self._now_s))
        connection = self._connected[replica.replica_id] = next(self._connections)
        self._timed(lambda: self._state.connect_replica(replica, connection, self._now_s))

    def _replica_drains(self) -> None:
        replica_id = self._replaced().replica_id
        self._timed(lambda: self._state.change_phase(replica_id, ReplicaPhase.DRAINING))

    def _replica_vanishes(self) -> None:
        connection, replica = next(self._connections), self._replaced()
        self._timed(lambda: self._state.connect_replica(replica, connection, self._now_s))
        self._timed(lambda: self._state.disconnect_replica(replica.replica_id, connection, self._now_s))

    def _replaced(self) -> Replica:
        """Connects a new replica in place of a random one, and returns the replaced one."""
        number = self._rng.choice([number for number, replica in enumerate(self._replicas) if replica.model != _FULL_MODEL])
        replaced, self._replicas[number] = self._replicas[number], self._new_replica(number)
        self._connect(self._replicas[number], full=False)
        self._caches.gone(replaced.replica_id)
        return replaced

    def _new_replica(self, number: int) -> Replica:
        connection = next(self._connections)
        model = _FULL_MODEL if number % 10 == 0 else _MODEL
        pool = Pool.EMBEDDING if number % 10 == 1 else Pool.GENERATION
        return Replica(f"{pool}-{connection}", pool, model, f"host:{connection}", _MAX_REQUESTS)

    def _churn(self) -> None:
        next(self._changes)()

    # The router

    def _tick(self) -> None:
        self._timed(lambda: self._state.expire(self._now_s))
        self._timed(self._state.replicas)
        self._timed(lambda: [self._state.outstanding_in(pool) for pool in Pool])

    def _timed(self, call: Callable[[], object]) -> None:
        started_s = time.perf_counter()
        call()
        self._busy_s += time.perf_counter() - started_s


@dataclass(slots=True)
class _Repeated:
    """A periodic event."""

    action: Callable[[], None]
    """What happens."""
    interval_s: float
    """Time between two occurrences, in seconds."""
    due_s: float = 0.0
    """Time of the next occurrence."""

    def catch_up(self, now_s: float) -> None:
        """Performs the action once for each occurrence that is due."""
        while self.due_s <= now_s:
            self.action()
            self.due_s += self.interval_s
