"""Admission decisions as timelines; each request gets exactly one final outcome."""

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from neox_serve.core.cluster import Demand, Replica, ReplicaPhase, Settled, Terms
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.admissions import Admissions, Notification, Preempt, Queued
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.fair_queue import QueueLimits
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

LIMITS = QueueLimits(max_requests=4, max_wait_s=30.0)


def demand(tenant: str = "a", **terms: Any) -> Demand:
    return Demand(Pool.GENERATION, "m", 10, 10, terms=Terms(tenant, **terms))


def state_of(places: int, pool: Pool = Pool.GENERATION) -> ClusterState:
    state = ClusterState(grace_s=3.0, started_s=-100.0, rng=Random(0))
    state.connect_gateway("g", (), 1, 0.0)
    state.connect_replica(Replica("r", pool, "m", "r:1", places), 1, 0.0)
    return state


def new_admissions(places: int = 1, limits: QueueLimits = LIMITS) -> Admissions:
    return Admissions(state_of(places), limits)


def outcomes(notifications: list[Notification]) -> list[tuple[int, Any]]:
    return [(one.lease_id, one.outcome) for one in notifications]


def error_of(notifications: list[Notification]) -> ServeError:
    (only,) = notifications
    assert isinstance(only.outcome, ServeError)
    return only.outcome


def test_request_without_room_waits_and_gets_the_next_free_place() -> None:
    admissions = new_admissions()
    assert outcomes(admissions.admit("g", 1, demand(), 0.0)) == [(1, Grant("r"))]
    assert outcomes(admissions.admit("g", 2, demand(), 0.0)) == [(2, Queued())]
    assert admissions.grant_next(1.0) == []
    admissions.settle("g", Settled(1), 1.0)
    assert outcomes(admissions.grant_next(1.0)) == [(2, Grant("r"))]


def test_request_that_arrives_while_others_wait_is_queued_behind_them() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand("a"), 0.0)
    admissions.admit("g", 2, demand("a"), 0.0)
    admissions.settle("g", Settled(1), 1.0)
    assert outcomes(admissions.admit("g", 3, demand("a"), 1.0)) == [(3, Queued())]
    assert outcomes(admissions.grant_next(1.0)) == [(2, Grant("r"))]


def test_request_withdrawn_while_queued_is_forgotten() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand(), 0.0)
    admissions.admit("g", 2, demand(), 0.0)
    admissions.settle("g", Settled(2), 1.0)
    admissions.settle("g", Settled(1), 1.0)
    assert admissions.grant_next(1.0) == []
    assert outcomes(admissions.admit("g", 3, demand(), 1.0)) == [(3, Grant("r"))]


def test_full_queue_sheds_the_lowest_class_with_a_retry_delay() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand(priority=PriorityClass.INTERACTIVE), 0.0)
    for lease_id in range(2, 6):
        admissions.admit("g", lease_id, demand(priority=PriorityClass.BULK), 0.0)
    answers = admissions.admit("g", 6, demand(priority=PriorityClass.INTERACTIVE), 0.0)
    assert outcomes(answers)[0] == (6, Queued())
    assert (answers[1].lease_id, error_of(answers[1:]).reason) == (5, Reason.OVERLOADED)
    refusal = error_of(admissions.admit("g", 7, demand(priority=PriorityClass.BULK), 0.0))
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.retry_after_s is not None


def test_request_that_would_miss_its_deadline_is_refused_at_once_with_the_expected_wait() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand(), 0.0)
    for moment in range(1, 11):  # 20 tokens a second
        admissions.admit("g", moment + 1, demand(), float(moment))
        admissions.settle("g", Settled(moment, 0, 10), float(moment))
        admissions.grant_next(float(moment))
    admissions.admit("g", 20, demand(time_left_s=4.0), 10.0)
    refusal = error_of(admissions.admit("g", 21, demand(time_left_s=0.5), 10.0))
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.retry_after_s == pytest.approx(1.0, rel=0.3)
    assert "expected_wait_s" in refusal.metadata
    assert outcomes(admissions.admit("g", 22, demand(time_left_s=5.0), 10.0)) == [(22, Queued())]
    assert admissions.expected_wait_s(demand(), 10.0) == pytest.approx(3.0, rel=0.3)


def test_request_queued_for_too_long_is_refused() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand(), 0.0)
    admissions.admit("g", 2, demand(), 0.0)
    assert admissions.expire(29.9) == []
    assert error_of(admissions.expire(30.0)).message == "no replica became free within 30.0 s"


def test_running_bulk_request_is_preempted_for_a_higher_class_the_newest_first() -> None:
    admissions = new_admissions(places=2)
    for lease_id in (1, 2):
        admissions.admit("g", lease_id, demand("bulk", priority=PriorityClass.BULK), 0.0)
    assert outcomes(admissions.admit("g", 3, demand("bulk", priority=PriorityClass.BULK), 0.0)) == [(3, Queued())]
    assert outcomes(admissions.admit("g", 4, demand(), 0.0)) == [(4, Queued()), (2, Preempt())]
    admissions.settle("g", Settled(2), 0.1)  # it had no output, and is admitted again
    assert outcomes(admissions.admit("g", 5, demand("bulk", priority=PriorityClass.BULK, waited_s=0.1), 0.1)) == [(5, Queued())]
    assert outcomes(admissions.grant_next(0.1)) == [(4, Grant("r"))]


def test_queued_request_whose_last_replica_is_lost_is_refused_at_its_turn() -> None:
    state = state_of(1)
    state.connect_replica(Replica("s", Pool.GENERATION, "m", "s:1", 1), 1, 0.0)
    admissions = Admissions(state, LIMITS)
    for lease_id in (1, 2):
        admissions.admit("g", lease_id, demand(), 0.0)
    assert outcomes(admissions.admit("g", 3, replace(demand(), excluded=("r",)), 0.0)) == [(3, Queued())]
    state.change_phase("s", ReplicaPhase.UNHEALTHY)
    for lease_id in (1, 2):
        admissions.settle("g", Settled(lease_id), 1.0)
    answers = admissions.grant_next(1.0)
    assert [answer.lease_id for answer in answers] == [3]
    assert error_of(answers).reason is Reason.NO_READY_REPLICA


def test_queue_of_a_disconnected_gateway_is_dropped() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand(), 0.0)
    admissions.admit("h", 1, demand(), 0.0)
    admissions.drop_gateway_queue("h")
    admissions.settle("g", Settled(1), 1.0)
    assert admissions.grant_next(1.0) == []


def test_tenants_with_requests_are_listed_the_busiest_first() -> None:
    admissions = new_admissions()
    admissions.admit("g", 1, demand("a"), 0.0)
    for lease_id in (2, 3):
        admissions.admit("g", lease_id, demand("b"), 0.0)
    first, second = admissions.tenants(10)
    assert (first.tenant, first.running_requests, first.waiting_requests, first.waiting_tokens) == ("b", 0, 2, 40)
    assert (second.tenant, second.running_requests, second.running_tokens, second.waiting_requests) == ("a", 1, 20, 0)
    assert second.served > first.served
    assert admissions.tenants(1) == (first,)


class OneFinalOutcome(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request gets one final outcome, and no replica exceeds max_requests."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 0.0
        self.state = state_of(3)
        self.admissions = Admissions(self.state, LIMITS)
        self.numbers = iter(range(1, 10_000))
        self.waiting: set[int] = set()
        self.running: set[int] = set()
        self.finals: Counter[int] = Counter()

    def notify(self, notifications: list[Notification]) -> None:
        for one in notifications:
            match one.outcome:
                case Queued():
                    assert one.lease_id in self.waiting
                case Preempt():
                    assert one.lease_id in self.running
                case Grant():
                    self.finals[one.lease_id] += 1
                    self.waiting.discard(one.lease_id)
                    self.running.add(one.lease_id)
                case ServeError():
                    self.finals[one.lease_id] += 1
                    self.waiting.discard(one.lease_id)

    @rule(tenant=st.sampled_from("ab"), priority=st.sampled_from(PriorityClass), left_s=st.floats(0.1, 100))
    def admit(self, tenant: str, priority: PriorityClass, left_s: float) -> None:
        number = next(self.numbers)
        self.waiting.add(number)
        self.notify(self.admissions.admit("g", number, demand(tenant, priority=priority, time_left_s=left_s), self.now_s))

    @rule(data=st.data(), output=st.integers(0, 10))
    def end(self, data: st.DataObject, output: int) -> None:
        if self.running:
            number = data.draw(st.sampled_from(sorted(self.running)))
            self.running.discard(number)
            self.admissions.settle("g", Settled(number, 0, output), self.now_s)
            self.notify(self.admissions.grant_next(self.now_s))

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.waiting:
            number = data.draw(st.sampled_from(sorted(self.waiting)))
            self.waiting.discard(number)
            self.admissions.settle("g", Settled(number), self.now_s)

    @rule(phase=st.sampled_from([ReplicaPhase.READY, ReplicaPhase.UNHEALTHY]))
    def change_replica(self, phase: ReplicaPhase) -> None:
        self.state.change_phase("r", phase)
        self.notify(self.admissions.grant_next(self.now_s))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.notify(self.admissions.expire(self.now_s))
        self.notify(self.admissions.grant_next(self.now_s))

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "admissions"):
            assert set(self.finals.values()) <= {1}
            assert len(self.admissions.queue) == len(self.waiting) <= LIMITS.max_requests
            assert self.state.outstanding("r").requests == len(self.running) <= 3


TestOneFinalOutcome = OneFinalOutcome.TestCase
TestOneFinalOutcome.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
