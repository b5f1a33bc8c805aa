"""The router decides like a plain filter over all replicas, after any history."""

from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from neox_serve.core.cluster import Demand, Lease, Replica, ReplicaLoad, ReplicaPhase
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.refusal import PoolFlow, next_slot_s, refusal
from neox_serve.core.scheduling.routing import RoutingFailure
from neox_serve.core.types import Pool

GRACE_S = 2.0
GATEWAYS = st.sampled_from(["g", "h"])
NAMES = [f"replica-{number}" for number in range(6)]
REPLICAS = st.sampled_from(NAMES)
POOLS = st.sampled_from([Pool.GENERATION, Pool.GENERATION, Pool.EMBEDDING])
MODELS = st.sampled_from(["m", "m", "n"])
TOKENS = st.integers(0, 3).map(lambda hundreds: 100 * hundreds)


@dataclass(slots=True)
class Known:
    """A replica in the reference model."""

    replica: Replica
    connection: int
    rate: int = 0
    lost_s: float | None = None


@dataclass(slots=True)
class Reference:
    """All replicas and leases in the simplest form, with the decisions that the policy allows."""

    replicas: dict[str, Known] = field(default_factory=dict)
    leases: dict[tuple[str, int], Lease] = field(default_factory=dict)
    promised_s: dict[tuple[Pool, str], float] = field(default_factory=dict)

    def choices(self, demand: Demand) -> set[str] | RoutingFailure:
        """Returns all replicas that power-of-two may pick, or why there is none."""
        if self.replicas and all(known.replica.model != demand.model for known in self.replicas.values()):
            return RoutingFailure.UNKNOWN_MODEL
        ready = [name for name, known in self.replicas.items() if is_ready_for(known, demand)]
        free = [name for name in ready if len(self.on(name)) < self.replicas[name].replica.max_requests]
        if not free:
            return RoutingFailure.FULL if ready else RoutingFailure.NOT_READY
        scores = {name: (sum(lease.tokens for lease in self.on(name)), len(self.on(name))) for name in free}
        second_worst = sorted(scores.values())[-2:][0]
        return {name for name, score in scores.items() if score <= second_worst}

    def retry_after_s(self, demand: Demand, now_s: float) -> float:
        """Returns the retry delay for a client that finds all replicas full."""
        key = (demand.pool, demand.model)
        members = [known for known in self.replicas.values() if (known.replica.pool, known.replica.model) == key]
        leases = [lease for known in members for lease in self.on(known.replica.replica_id)]
        flow = PoolFlow(len(leases), sum(lease.tokens for lease in leases), sum(known.rate for known in members))
        self.promised_s[key] = next_slot_s(self.promised_s.get(key, now_s), flow, now_s)
        return self.promised_s[key] - now_s

    def on(self, name: str) -> list[Lease]:
        """Returns the leases on a replica."""
        return [lease for lease in self.leases.values() if lease.replica_id == name]

    def forget(self, name: str) -> None:
        """Removes a replica with its leases."""
        del self.replicas[name]
        self.leases = {key: lease for key, lease in self.leases.items() if lease.replica_id != name}


def is_ready_for(known: Known, demand: Demand) -> bool:
    replica = known.replica
    fits = (replica.pool, replica.model) == (demand.pool, demand.model) and replica.replica_id not in demand.excluded
    return fits and replica.phase is ReplicaPhase.READY and known.lost_s is None


class Decisions(RuleBasedStateMachine):
    """Feeds the same events to both; each request is decided by both."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ClusterState(grace_s=GRACE_S, started_s=0.0, rng=Random(0))
        self.reference = Reference()
        self.now_s = 0.0
        self.number = 0
        for gateway_id in ("g", "h"):
            self.state.connect_gateway(gateway_id, (), 0, 0.0)

    def next_number(self) -> int:
        self.number += 1
        return self.number

    @rule(name=REPLICAS, pool=POOLS, model=MODELS, port=st.integers(1, 12), max_requests=st.integers(1, 3))
    def replica_connects(self, name: str, pool: Pool, model: str, port: int, max_requests: int) -> None:
        replica = Replica(name, pool, model, f"host:{port}", max_requests)
        for other in [each for each, known in self.reference.replicas.items() if known.replica.address == replica.address]:
            if other != name:
                self.reference.forget(other)
        self.reference.replicas[name] = Known(replica, self.next_number())
        self.state.connect_replica(replica, self.number, self.now_s)

    @rule(name=REPLICAS, phase=st.sampled_from(ReplicaPhase))
    def phase_changes(self, name: str, phase: ReplicaPhase) -> None:
        self.state.change_phase(name, phase)
        if known := self.reference.replicas.get(name):
            known.replica = known.replica.moved_to(phase)

    @rule(name=REPLICAS, rate=st.integers(0, 200))
    def load_is_reported(self, name: str, rate: int) -> None:
        self.state.report_load(name, ReplicaLoad(output_tokens_per_second=rate))
        if known := self.reference.replicas.get(name):
            known.rate = rate

    @rule(name=REPLICAS, stale=st.booleans())
    def replica_disconnects(self, name: str, *, stale: bool) -> None:
        if known := self.reference.replicas.get(name):
            self.state.disconnect_replica(name, known.connection - stale, self.now_s)
            if not stale and known.lost_s is None:
                known.lost_s = self.now_s

    @rule(elapsed_s=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s
        self.state.expire(self.now_s)
        for name, known in list(self.reference.replicas.items()):
            if known.lost_s is not None and self.now_s >= known.lost_s + GRACE_S:
                self.reference.forget(name)

    @rule(gateway_id=GATEWAYS, kept=st.integers(0, 3), name=REPLICAS, tokens=TOKENS)
    def gateway_says_hello(self, gateway_id: str, kept: int, name: str, tokens: int) -> None:
        mine = [lease for (owner, _), lease in self.reference.leases.items() if owner == gateway_id]
        hello = [*mine[:kept], Lease(self.next_number(), name, tokens)]
        others = {key: lease for key, lease in self.reference.leases.items() if key[0] != gateway_id}
        self.reference.leases = others | {(gateway_id, lease.lease_id): lease for lease in hello}
        self.state.connect_gateway(gateway_id, hello, self.next_number(), self.now_s)

    @rule(gateway_id=GATEWAYS, name=REPLICAS, tokens=TOKENS, again=st.booleans())
    def gateway_leases_by_itself(self, gateway_id: str, name: str, tokens: int, *, again: bool) -> None:
        lease = Lease(self.number if again else self.next_number(), name, tokens)
        self.reference.leases[gateway_id, lease.lease_id] = lease
        self.state.adopt(gateway_id, [lease])

    @rule(gateway_id=GATEWAYS, pool=POOLS, model=st.sampled_from(["m", "n", "o"]), tokens=TOKENS, excluded=st.sets(REPLICAS, max_size=5))
    def request_comes(self, gateway_id: str, pool: Pool, model: str, tokens: int, excluded: set[str]) -> None:
        demand = Demand(pool, model, tokens, 0, tuple(excluded))
        expected = self.reference.choices(demand)
        answer = self.state.admit(gateway_id, self.next_number(), demand, self.now_s)
        if isinstance(expected, RoutingFailure):
            retry_after_s = self.reference.retry_after_s(demand, self.now_s) if expected is RoutingFailure.FULL else 0.0
            error = refusal(expected, demand, retry_after_s)
            assert not isinstance(answer, Grant)
            assert (answer.reason, answer.retry_after_s) == (error.reason, error.retry_after_s)
        else:
            assert isinstance(answer, Grant)
            assert answer.replica_id in expected
            self.reference.leases[gateway_id, self.number] = Lease(self.number, answer.replica_id, tokens)

    @rule(gateway_id=GATEWAYS, data=st.data())
    def requests_end(self, gateway_id: str, data: st.DataObject) -> None:
        mine = [lease_id for owner, lease_id in self.reference.leases if owner == gateway_id]
        ended = data.draw(st.lists(st.sampled_from(mine), max_size=3)) if mine else []
        self.state.settle(gateway_id, [*ended, self.number + 1])
        for lease_id in ended:
            self.reference.leases.pop((gateway_id, lease_id), None)


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
