"""Pools at zero: requests are held for the replica that they wake, and counted for whoever decides of it."""

from dataclasses import replace
from random import Random

import pytest

from neox_serve.core.cluster import Demand, Replica, ReplicaPhase, Settled, Terms
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.admissions import Admissions, Queued
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.fair_queue import QueueLimits
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

LANE = (Pool.GENERATION, "m")
LIMITS = QueueLimits(max_requests=10, max_tokens=10_000, longest_wait_s=60.0)
DEMAND = Demand(Pool.GENERATION, "m", 100, 50, terms=Terms(tenant="a", time_left_s=30.0))


def admissions(*lanes: tuple[Pool, str]) -> tuple[ClusterState, Admissions]:
    state = ClusterState(grace_s=0.0, started_s=-1.0, rng=Random(0))
    state.connect_gateway("g", (), 0, 0.0)
    return state, Admissions(state, LIMITS, waking=frozenset(lanes))


def test_request_of_a_pool_at_zero_waits_and_gets_the_first_replica() -> None:
    state, desk = admissions(LANE)
    assert [answer.outcome for answer in desk.ask("g", 1, DEMAND, 0.0)] == [Queued()]
    assert desk.next(5.0) == []
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8), 0, 10.0)
    (answer,) = desk.next(10.0)
    assert isinstance(answer.outcome, Grant)


def test_request_of_a_pool_at_zero_is_held_no_longer_than_its_deadline() -> None:
    _, desk = admissions(LANE)
    desk.ask("g", 1, DEMAND, 0.0)
    assert desk.expire(29.0) == []
    (answer,) = desk.expire(31.0)
    assert isinstance(answer.outcome, ServeError)
    assert answer.outcome.reason is Reason.OVERLOADED


@pytest.mark.parametrize(
    "demand", [replace(DEMAND, model="another"), replace(DEMAND, pool=Pool.EMBEDDING), replace(DEMAND, excluded=("r",))]
)
def test_request_that_wakes_nothing_is_refused_at_once(demand: Demand) -> None:
    state, desk = admissions(LANE)
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8, phase=ReplicaPhase.DRAINING), 0, 0.0)
    (answer,) = desk.ask("g", 1, demand, 0.0)
    assert isinstance(answer.outcome, ServeError)


def test_pool_that_does_not_wake_refuses_while_it_has_no_replica() -> None:
    _, desk = admissions()
    (answer,) = desk.ask("g", 1, DEMAND, 0.0)
    assert isinstance(answer.outcome, ServeError)


def test_demand_counts_what_came_since_the_last_look_and_what_waits() -> None:
    state, desk = admissions(LANE)
    desk.ask("g", 1, DEMAND, 0.0)
    desk.ask("g", 2, replace(DEMAND, terms=Terms(priority=PriorityClass.BULK)), 0.5)
    seen = desk.demand(2.0)[Pool.GENERATION]
    assert (seen.seconds, seen.ready_replicas, seen.running_requests) == (2.0, 0, 0)
    default, bulk = seen.by_class[PriorityClass.DEFAULT], seen.by_class[PriorityClass.BULK]
    assert (default.requests, default.input_tokens, default.output_tokens) == (1, 100, 50)
    assert (default.waiting_requests, default.waiting_tokens) == (1, 150)
    assert bulk.requests == 1
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8), 0, 3.0)
    desk.next(3.0)
    later = desk.demand(4.0)[Pool.GENERATION]
    assert (later.ready_replicas, later.running_requests) == (1, 2)
    assert sum(counts.requests + counts.waiting_requests for counts in later.by_class.values()) == 0


def test_demand_counts_a_request_that_comes_again_once() -> None:
    state, desk = admissions(LANE)
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8), 0, 0.0)
    desk.ask("g", 1, DEMAND, 0.0)
    desk.settle("g", Settled(1), 0.5)
    desk.ask("g", 2, replace(DEMAND, terms=replace(DEMAND.terms, waited_s=0.5)), 0.5)
    assert desk.demand(1.0)[Pool.GENERATION].by_class[PriorityClass.DEFAULT].requests == 1
