"""BULK uses idle capacity and leaves room for other classes, as timelines and as a property."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.cluster import Demand, Replica, Settled, Terms
from neox_serve.core.scheduling.admissions import Admissions, Queued
from neox_serve.core.scheduling.bulk_share import BulkLimits
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.fair_queue import QueueLimits
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

BULK, OTHER = PriorityClass.BULK, PriorityClass.INTERACTIVE
LIMITS = BulkLimits(per_replica=4, per_replica_contended=1, quiet_s=2.0)


class Router:
    """Admissions over replicas with many places."""

    def __init__(self, replicas: int = 1, places: int = 100) -> None:
        state = ClusterState(grace_s=3.0, started_s=-100.0, rng=Random(0))
        state.connect_gateway("g", (), 1, 0.0)
        for number in range(replicas):
            state.connect_replica(Replica(f"r{number}", Pool.GENERATION, "m", f"r:{number}", places), 1, 0.0)
        self.admissions = Admissions(state, QueueLimits(1_000, 1 << 30, 1e9), bulk=LIMITS)
        self.running: dict[int, PriorityClass] = {}
        self.asked = 0

    def ask(self, priority: PriorityClass, now_s: float) -> bool:
        """Adds a request and returns whether it runs at once."""
        self.asked += 1
        terms = Terms("a", priority=priority)
        self._note(self.admissions.admit("g", self.asked, Demand(Pool.GENERATION, "m", 10, 10, terms=terms), now_s), priority)
        return self.asked in self.running

    def end(self, priority: PriorityClass, now_s: float) -> None:
        """Ends a running request and lets waiting ones start."""
        lease = next(lease for lease, one in self.running.items() if one is priority)
        del self.running[lease]
        self.admissions.settle("g", Settled(lease, 0, 10), now_s)
        self.look(now_s)

    def look(self, now_s: float) -> None:
        self._note(self.admissions.grant_next(now_s), BULK)

    def count(self, priority: PriorityClass) -> int:
        return sum(one is priority for one in self.running.values())

    def _note(self, answers: list, priority: PriorityClass) -> None:  # type: ignore[type-arg]
        for answer in answers:
            assert isinstance(answer.outcome, Grant | Queued)
            if isinstance(answer.outcome, Grant):
                self.running[answer.lease_id] = priority


def test_bulk_alone_runs_up_to_its_limit_and_the_rest_follows() -> None:
    router = Router(replicas=2)
    assert [router.ask(BULK, 0.0) for _ in range(10)] == [True] * 8 + [False] * 2
    router.end(BULK, 1.0)
    assert router.count(BULK) == 8


def test_other_classes_overtake_bulk_that_is_held_back() -> None:
    router = Router()
    for _ in range(6):
        router.ask(BULK, 0.0)
    assert router.ask(OTHER, 0.0)
    assert router.admissions.expected_wait_s(Demand(Pool.GENERATION, "m", 10, 10, terms=Terms("a", priority=OTHER)), 0.0) == 0.0
    held = Demand(Pool.GENERATION, "m", 10, 10, terms=Terms("a", priority=BULK))
    assert router.admissions.expected_wait_s(held, 0.0) != 0.0


def test_bulk_shrinks_beside_other_classes_and_grows_after_a_quiet_time() -> None:
    router = Router()
    for _ in range(8):
        router.ask(BULK, 0.0)
    router.ask(OTHER, 1.0)
    for _ in range(3):
        router.end(BULK, 1.5)
    assert router.count(BULK) == 1
    router.end(BULK, 1.6)
    assert router.count(BULK) == 1, "one takes the place of the one that ended"
    router.end(OTHER, 2.0)
    router.look(3.9)
    assert router.count(BULK) == 1
    router.look(4.0)
    assert router.count(BULK) == 4


def test_bulk_is_limited_only_by_requests_of_its_own_pool() -> None:
    router = Router()
    router.admissions.admit("g", 99, Demand(Pool.EMBEDDING, "m", 10, 0, terms=Terms("a", priority=OTHER)), 0.0)
    assert [router.ask(BULK, 0.0) for _ in range(4)] == [True] * 4


@pytest.mark.parametrize("values", [(0, 1, 1.0), (1, 0, 1.0), (1, 1, -1.0)])
def test_limits_below_one_are_rejected(values: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="at least"):
        BulkLimits(*values)


@given(st.lists(st.sampled_from(["bulk", "other", "end bulk", "end other", "time"]), max_size=60))
def test_other_classes_run_at_once_and_bulk_never_starts_beyond_its_limit(events: list[str]) -> None:
    router, now_s = Router(), 0.0
    for event in events:
        now_s += 3.0 if event == "time" else 0.1
        before = router.count(BULK)
        if event == "bulk":
            router.ask(BULK, now_s)
        elif event == "other":
            assert router.ask(OTHER, now_s)
        elif event == "time":
            router.look(now_s)
        elif (priority := BULK if event == "end bulk" else OTHER) in router.running.values():
            router.end(priority, now_s)
            before -= priority is BULK
        most = LIMITS.per_replica_contended if router.count(OTHER) else LIMITS.per_replica
        assert router.count(BULK) <= max(before, most)
    now_s += 10.0
    for _ in range(router.count(OTHER)):
        router.end(OTHER, now_s)
    while router.count(BULK):
        now_s += 10.0
        router.end(BULK, now_s)
    router.look(now_s)
    assert not list(router.admissions.queue.waiting())
