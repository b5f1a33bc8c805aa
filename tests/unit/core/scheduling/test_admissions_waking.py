"""Pools scaled to zero: requests wait for the replica that is started for them, and count as demand."""

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
LIMITS = QueueLimits(max_requests=10, max_tokens=10_000, max_wait_s=60.0)
DEMAND = Demand(Pool.GENERATION, "m", 100, 50, terms=Terms(tenant="a", time_left_s=30.0))


def new_admissions(*lanes: tuple[Pool, str]) -> tuple[ClusterState, Admissions]:
    state = ClusterState(grace_s=0.0, started_s=-1.0, rng=Random(0))
    state.connect_gateway("g", (), 0, 0.0)
    return state, Admissions(state, LIMITS, waking=frozenset(lanes))


def test_request_to_a_pool_at_zero_is_queued_and_gets_the_first_replica() -> None:
    state, admissions = new_admissions(LANE)
    assert [answer.outcome for answer in admissions.admit("g", 1, DEMAND, 0.0)] == [Queued()]
    assert admissions.grant_next(5.0) == []
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8), 0, 10.0)
    (answer,) = admissions.grant_next(10.0)
    assert isinstance(answer.outcome, Grant)


def test_request_to_a_pool_at_zero_is_refused_at_its_deadline() -> None:
    _, admissions = new_admissions(LANE)
    admissions.admit("g", 1, DEMAND, 0.0)
    assert admissions.expire(29.0) == []
    (answer,) = admissions.expire(31.0)
    assert isinstance(answer.outcome, ServeError)
    assert answer.outcome.reason is Reason.OVERLOADED


@pytest.mark.parametrize(
    "demand", [replace(DEMAND, model="another"), replace(DEMAND, pool=Pool.EMBEDDING), replace(DEMAND, excluded=("r",))]
)
def test_request_that_starts_no_replica_is_refused_at_once(demand: Demand) -> None:
    state, admissions = new_admissions(LANE)
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8, phase=ReplicaPhase.DRAINING), 0, 0.0)
    (answer,) = admissions.admit("g", 1, demand, 0.0)
    assert isinstance(answer.outcome, ServeError)


def test_request_to_a_pool_that_does_not_scale_to_zero_is_refused_without_a_replica() -> None:
    _, admissions = new_admissions()
    (answer,) = admissions.admit("g", 1, DEMAND, 0.0)
    assert isinstance(answer.outcome, ServeError)


def test_demand_counts_arrivals_since_the_previous_call_and_waiting_requests() -> None:
    state, admissions = new_admissions(LANE)
    admissions.admit("g", 1, DEMAND, 0.0)
    admissions.admit("g", 2, replace(DEMAND, terms=Terms(priority=PriorityClass.BULK)), 0.5)
    seen = admissions.demand(2.0)[Pool.GENERATION]
    assert (seen.seconds, seen.ready_replicas, seen.running_requests) == (2.0, 0, 0)
    default, bulk = seen.by_class[PriorityClass.DEFAULT], seen.by_class[PriorityClass.BULK]
    assert (default.requests, default.input_tokens, default.output_tokens) == (1, 100, 50)
    assert (default.waiting_requests, default.waiting_tokens) == (1, 150)
    assert bulk.requests == 1
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8), 0, 3.0)
    admissions.grant_next(3.0)
    later = admissions.demand(4.0)[Pool.GENERATION]
    assert (later.ready_replicas, later.running_requests) == (1, 2)
    assert sum(counts.requests + counts.waiting_requests for counts in later.by_class.values()) == 0


def test_demand_counts_a_request_that_is_admitted_again_once() -> None:
    state, admissions = new_admissions(LANE)
    state.connect_replica(Replica("r", Pool.GENERATION, "m", "h:1", 8), 0, 0.0)
    admissions.admit("g", 1, DEMAND, 0.0)
    admissions.settle("g", Settled(1), 0.5)
    admissions.admit("g", 2, replace(DEMAND, terms=replace(DEMAND.terms, waited_s=0.5)), 0.5)
    assert admissions.demand(1.0)[Pool.GENERATION].by_class[PriorityClass.DEFAULT].requests == 1
