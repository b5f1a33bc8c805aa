"""The router's state: timelines, and a stateful property test of its leases."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from neox_serve.core.cluster import Demand, Lease, Outstanding, Replica, ReplicaLoad, ReplicaPhase
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.types import Pool

GRACE_S = 3.0
DEMAND = Demand(Pool.GENERATION, "m", prompt_tokens=10, output_tokens=90)


def replica(name: str = "r", *, address: str = "", phase: ReplicaPhase = ReplicaPhase.READY, max_requests: int = 2) -> Replica:
    return Replica(name, Pool.GENERATION, "m", address or f"{name}:1", max_requests, phase)


def state_with(*replicas: Replica) -> ClusterState:
    """Returns the state of a router that started long ago, with a gateway `g` and these replicas, all on connection 1, at time 0."""
    state = ClusterState(grace_s=GRACE_S, started_s=-100.0, rng=Random(0))
    state.connect_gateway("g", (), 1, 0.0)
    for each in replicas:
        state.connect_replica(each, 1, 0.0)
    return state


def refused(answer: Grant | ServeError) -> ServeError:
    assert isinstance(answer, ServeError)
    return answer


def test_admit_grants_until_full_and_then_refuses_with_growing_delays() -> None:
    state = state_with(replica())
    state.report_load("r", ReplicaLoad(output_tokens_per_second=100.0))
    assert [state.admit("g", lease_id, DEMAND, 1.0) for lease_id in (1, 2)] == [Grant("r"), Grant("r")]
    assert state.outstanding("r") == Outstanding(2, 200)
    first, second = (refused(state.admit("g", lease_id, DEMAND, 1.0)) for lease_id in (3, 4))
    assert (first.reason, first.retry_after_s, second.retry_after_s) == (Reason.OVERLOADED, 1.0, 2.0)
    state.settle("g", [1, 1, 99])
    assert state.admit("g", 5, DEMAND, 1.0) == Grant("r")


def test_admit_unknown_model_is_refused_without_a_retry_delay() -> None:
    error = refused(state_with(replica()).admit("g", 1, Demand(Pool.GENERATION, "other", 1, 1), 0.0))
    assert (error.reason, error.retry_after_s) == (Reason.UNKNOWN_MODEL, None)


def test_lost_replica_keeps_its_leases_for_the_grace_period_only_and_gets_no_new_ones() -> None:
    state = state_with(replica())
    state.admit("g", 1, DEMAND, 0.0)
    state.disconnect_replica("r", 1, 10.0)
    assert refused(state.admit("g", 2, DEMAND, 10.1)).reason is Reason.NO_READY_REPLICA
    assert state.may_become_ready(DEMAND, 10.1)
    assert state.expire(12.9) == ()
    assert state.outstanding("r") == Outstanding(1, 100)
    assert state.expire(13.0) == ("r",)
    assert (state.replicas(), state.lease_count()) == ((), 0)
    assert not state.may_become_ready(DEMAND, 13.1)


def test_replica_that_reconnects_within_the_grace_period_keeps_its_leases() -> None:
    state = state_with(replica())
    state.admit("g", 1, DEMAND, 0.0)
    state.disconnect_replica("r", 1, 10.0)
    state.connect_replica(replica(), 2, 11.0)
    assert state.expire(20.0) == ()
    assert state.outstanding("r") == Outstanding(1, 100)
    assert state.admit("g", 2, DEMAND, 20.0) == Grant("r")


def test_late_end_of_an_old_stream_changes_nothing() -> None:
    state = state_with(replica())
    state.connect_replica(replica(), 2, 1.0)
    state.connect_gateway("g", (), 2, 1.0)
    state.disconnect_replica("r", 1, 2.0)
    state.disconnect_gateway("g", 1, 2.0)
    assert state.expire(100.0) == ()
    assert state.admit("g", 1, DEMAND, 100.0) == Grant("r")


def test_gateway_hello_replaces_leases_even_before_their_replica_registers() -> None:
    state = state_with()
    state.admit("g", 1, DEMAND, 0.0)
    state.connect_gateway("g", [Lease(7, "r", 40)], 2, 1.0)
    state.connect_replica(replica(), 1, 2.0)
    assert state.leases("g") == (Lease(7, "r", 40),)
    assert state.outstanding("r") == Outstanding(1, 40)


def test_leases_of_a_lost_gateway_are_removed_after_the_grace_period() -> None:
    state = state_with(replica())
    state.admit("g", 1, DEMAND, 0.0)
    state.disconnect_gateway("g", 1, 5.0)
    assert (state.expire(7.9), state.lease_count()) == ((), 1)
    assert (state.expire(8.0), state.lease_count()) == (("g",), 0)


def test_draining_replica_gets_no_requests_and_never_becomes_ready_again() -> None:
    state = state_with(replica())
    state.change_phase("r", ReplicaPhase.DRAINING)
    state.change_phase("r", ReplicaPhase.READY)
    assert refused(state.admit("g", 1, DEMAND, 0.0)).reason is Reason.NO_READY_REPLICA


def test_unhealthy_replica_may_become_ready_again() -> None:
    state = state_with(replica())
    state.change_phase("r", ReplicaPhase.UNHEALTHY)
    assert refused(state.admit("g", 1, DEMAND, 0.0)).reason is Reason.NO_READY_REPLICA
    state.change_phase("r", ReplicaPhase.READY)
    assert state.admit("g", 1, DEMAND, 0.0) == Grant("r")


def test_replica_at_the_address_of_another_replaces_that_one() -> None:
    state = state_with(replica("old", address="host:1"))
    state.admit("g", 1, DEMAND, 0.0)
    state.connect_replica(replica("new", address="host:1"), 2, 1.0)
    assert [each.replica_id for each in state.replicas()] == ["new"]
    assert state.lease_count() == 0


def test_router_that_has_just_started_expects_replicas() -> None:
    state = ClusterState(grace_s=GRACE_S, started_s=0.0, rng=Random(0))
    assert state.may_become_ready(DEMAND, 2.9)
    assert not state.may_become_ready(DEMAND, 3.0)


GATEWAYS = ("g", "h")
REPLICAS = ("r", "s", "t")


class Books(RuleBasedStateMachine):
    """Drives the state as peers would, and compares it with a plain list of the leases that must exist."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ClusterState(grace_s=GRACE_S, started_s=0.0, rng=Random(0))
        self.now_s = 0.0
        self.connection = 0
        self.lease_id = 0
        self.leases: dict[tuple[str, int], Lease] = {}
        self.lost: dict[str, float] = {}
        self.known: dict[str, int] = {}
        self.phases: dict[str, ReplicaPhase] = {}

    def connect(self, peer: str) -> int:
        self.connection += 1
        self.known[peer] = self.connection
        self.lost.pop(peer, None)
        return self.connection

    @rule(name=st.sampled_from(REPLICAS), draining=st.booleans())
    def replica_connects(self, name: str, *, draining: bool) -> None:
        phase = ReplicaPhase.DRAINING if draining else ReplicaPhase.READY
        self.phases[name] = phase
        self.state.connect_replica(replica(name, phase=phase, max_requests=3), self.connect(name), self.now_s)

    @rule(name=st.sampled_from(GATEWAYS), kept=st.booleans())
    def gateway_connects(self, name: str, *, kept: bool) -> None:
        mine = {key: lease for key, lease in self.leases.items() if key[0] == name}
        for key in mine:
            del self.leases[key]
        if kept:
            self.leases |= mine
        self.state.connect_gateway(name, mine.values() if kept else (), self.connect(name), self.now_s)

    @rule(name=st.sampled_from(GATEWAYS + REPLICAS), stale=st.booleans())
    def peer_disconnects(self, name: str, *, stale: bool) -> None:
        if name not in self.known:
            return
        disconnect = self.state.disconnect_gateway if name in GATEWAYS else self.state.disconnect_replica
        disconnect(name, self.known[name] - stale, self.now_s)
        if not stale:
            self.lost.setdefault(name, self.now_s)

    @rule(name=st.sampled_from(GATEWAYS), tokens=st.integers(0, 1000), excluded=st.sets(st.sampled_from(REPLICAS)))
    def request_comes(self, name: str, tokens: int, excluded: set[str]) -> None:
        if name not in self.known:
            return
        self.lease_id += 1
        demand = Demand(Pool.GENERATION, "m", tokens, 0, tuple(excluded))
        answer = self.state.admit(name, self.lease_id, demand, self.now_s)
        if isinstance(answer, Grant):
            assert answer.replica_id not in excluded | self.lost.keys()
            assert self.phases[answer.replica_id] is ReplicaPhase.READY
            self.leases[name, self.lease_id] = Lease(self.lease_id, answer.replica_id, tokens)
        else:
            assert answer.retry_after_s

    @rule(name=st.sampled_from(GATEWAYS), replica_id=st.sampled_from(REPLICAS), tokens=st.integers(0, 1000))
    def gateway_leases_by_itself(self, name: str, replica_id: str, tokens: int) -> None:
        self.lease_id += 1
        lease = Lease(self.lease_id, replica_id, tokens)
        self.state.adopt(name, [lease])
        if name in self.known:
            self.leases[name, lease.lease_id] = lease

    @rule(name=st.sampled_from(GATEWAYS), lease_id=st.integers(1, 60))
    def request_ends(self, name: str, lease_id: int) -> None:
        self.state.settle(name, [lease_id, lease_id])
        self.leases.pop((name, lease_id), None)

    @rule(elapsed_s=st.floats(0.1, 2.0))
    def time_passes(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s
        expired = self.state.expire(self.now_s)
        assert set(expired) == {name for name, lost_s in self.lost.items() if self.now_s >= lost_s + GRACE_S}
        for name in expired:
            del self.lost[name], self.known[name]
        self.leases = {key: each for key, each in self.leases.items() if key[0] not in expired and each.replica_id not in expired}

    @invariant()
    def books_hold_exactly_the_leases_in_flight(self) -> None:
        for gateway in GATEWAYS:
            mine = {lease for (name, _), lease in self.leases.items() if name == gateway}
            assert set(self.state.leases(gateway)) == mine
        assert self.state.lease_count() == len(self.leases)

    @invariant()
    def sums_equal_the_leases(self) -> None:
        for name in REPLICAS:
            mine = [lease.tokens for lease in self.leases.values() if lease.replica_id == name]
            assert self.state.outstanding(name) == Outstanding(len(mine), sum(mine))


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_view_of_a_replica_whose_stream_ended_is_lost_until_it_reconnects() -> None:
    state = ClusterState(grace_s=3, started_s=0, rng=Random(0))
    replica = Replica("a", Pool.GENERATION, "m", "host:1", 4, ReplicaPhase.READY)
    state.connect_replica(replica, 1, 0.0)
    state.disconnect_replica("a", 1, 1.0)
    assert [(one.lost, one.ready) for one in state.view(2.0).replicas] == [(True, False)]
    state.connect_replica(replica, 2, 2.5)
    assert [(one.lost, one.ready) for one in state.view(2.6).replicas] == [(False, True)]


def test_late_block_news_of_an_old_connection_change_nothing() -> None:
    state = ClusterState(grace_s=3, started_s=0, rng=Random(0))
    for connection, stored in ((1, [1]), (2, [1, 2])):
        state.connect_replica(replica("r"), connection, 0.0)
        assert state.take_block_news("r", connection, BlockNews(7 * connection, stored, restarts=True))
    assert state.take_block_news("r", 1, BlockNews(8, [3]))
    assert state.block_count() == 2
    assert state.take_block_news("r", 2, BlockNews(15, [3]))
    assert not state.take_block_news("r", 2, BlockNews(17, [4]))
    assert state.take_block_news("unknown", 1, BlockNews(1))
    assert state.block_count() == 0


def test_grant_to_a_replica_with_cached_blocks_counts_only_uncached_tokens() -> None:
    state = ClusterState(grace_s=3, started_s=0, rng=Random(0))
    for name in ("a", "b"):
        state.connect_replica(replica(name), 1, 0.0)
    state.take_block_news("b", 1, BlockNews(0, [1, 2], restarts=True))
    state.connect_gateway("g", (), 1, 0.0)
    grant = state.admit("g", 1, Demand(Pool.GENERATION, "m", 100, 10, blocks=(1, 2, 3), block_tokens=32), 0.0)
    assert isinstance(grant, Grant)
    assert (grant.replica_id, grant.cached_tokens) == ("b", 64)
    assert grant.explanation == "policy=kv-aware why=longest-prefix cached_tokens=64 candidates=2"
    assert state.outstanding("b") == Outstanding(1, 46)
    assert state.leases("g") == (Lease(1, "b", 110, 64),)
