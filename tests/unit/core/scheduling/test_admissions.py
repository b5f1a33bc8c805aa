"""What becomes of requests for a replica, as timelines, and that each gets one final answer."""

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

LIMITS = QueueLimits(max_requests=4, longest_wait_s=30.0)


def demand(tenant: str = "a", **terms: Any) -> Demand:
    return Demand(Pool.GENERATION, "m", 10, 10, terms=Terms(tenant, **terms))


def state_of(places: int, pool: Pool = Pool.GENERATION) -> ClusterState:
    state = ClusterState(grace_s=3.0, started_s=-100.0, rng=Random(0))
    state.connect_gateway("g", (), 1, 0.0)
    state.connect_replica(Replica("r", pool, "m", "r:1", places), 1, 0.0)
    return state


def admissions(places: int = 1, limits: QueueLimits = LIMITS) -> Admissions:
    return Admissions(state_of(places), limits)


def told(answers: list[Notification]) -> list[tuple[int, Any]]:
    return [(answer.lease_id, answer.outcome) for answer in answers]


def error_of(answers: list[Notification]) -> ServeError:
    (answer,) = answers
    assert isinstance(answer.outcome, ServeError)
    return answer.outcome


def test_request_is_granted_at_once_where_there_is_room_and_else_waits_for_the_next_place() -> None:
    asked = admissions()
    assert told(asked.ask("g", 1, demand(), 0.0)) == [(1, Grant("r"))]
    assert told(asked.ask("g", 2, demand(), 0.0)) == [(2, Queued())]
    assert asked.next(1.0) == []
    asked.settle("g", Settled(1), 1.0)
    assert told(asked.next(1.0)) == [(2, Grant("r"))]


def test_request_does_not_overtake_those_that_wait() -> None:
    asked = admissions()
    asked.ask("g", 1, demand("a"), 0.0)
    asked.ask("g", 2, demand("a"), 0.0)
    asked.settle("g", Settled(1), 1.0)
    assert told(asked.ask("g", 3, demand("a"), 1.0)) == [(3, Queued())]
    assert told(asked.next(1.0)) == [(2, Grant("r"))]


def test_request_given_up_while_it_waits_is_forgotten() -> None:
    asked = admissions()
    asked.ask("g", 1, demand(), 0.0)
    asked.ask("g", 2, demand(), 0.0)
    asked.settle("g", Settled(2), 1.0)
    asked.settle("g", Settled(1), 1.0)
    assert asked.next(1.0) == []
    assert told(asked.ask("g", 3, demand(), 1.0)) == [(3, Grant("r"))]


def test_full_queue_pushes_out_the_min_important_with_a_time_to_come_back() -> None:
    asked = admissions()
    asked.ask("g", 1, demand(priority=PriorityClass.INTERACTIVE), 0.0)
    for lease_id in range(2, 6):
        asked.ask("g", lease_id, demand(priority=PriorityClass.BULK), 0.0)
    answers = asked.ask("g", 6, demand(priority=PriorityClass.INTERACTIVE), 0.0)
    assert told(answers)[0] == (6, Queued())
    assert (answers[1].lease_id, error_of(answers[1:]).reason) == (5, Reason.OVERLOADED)
    refusal = error_of(asked.ask("g", 7, demand(priority=PriorityClass.BULK), 0.0))
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.retry_after_s is not None


def test_request_that_cannot_make_its_deadline_is_refused_at_once_with_the_expected_wait() -> None:
    asked = admissions()
    asked.ask("g", 1, demand(), 0.0)
    for moment in range(1, 11):  # 20 tokens a second
        asked.ask("g", moment + 1, demand(), float(moment))
        asked.settle("g", Settled(moment, 0, 10), float(moment))
        asked.next(float(moment))
    asked.ask("g", 20, demand(time_left_s=4.0), 10.0)
    refusal = error_of(asked.ask("g", 21, demand(time_left_s=0.5), 10.0))
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.retry_after_s == pytest.approx(1.0, rel=0.3)
    assert "expected_wait_s" in refusal.metadata
    assert told(asked.ask("g", 22, demand(time_left_s=5.0), 10.0)) == [(22, Queued())]
    assert asked.expected_wait_s(demand(), 10.0) == pytest.approx(3.0, rel=0.3)


def test_request_whose_time_is_over_while_it_waits_is_refused() -> None:
    asked = admissions()
    asked.ask("g", 1, demand(), 0.0)
    asked.ask("g", 2, demand(), 0.0)
    assert asked.expire(29.9) == []
    assert error_of(asked.expire(30.0)).message == "no replica has come free in 30.0 s"


def test_running_bulk_requests_are_preempted_for_a_higher_class_newest_first() -> None:
    asked = admissions(places=2)
    for lease_id in (1, 2):
        asked.ask("g", lease_id, demand("bulk", priority=PriorityClass.BULK), 0.0)
    assert told(asked.ask("g", 3, demand("bulk", priority=PriorityClass.BULK), 0.0)) == [(3, Queued())]
    assert told(asked.ask("g", 4, demand(), 0.0)) == [(4, Queued()), (2, Preempt())]
    asked.settle("g", Settled(2), 0.1)  # it had no token out, and comes again
    assert told(asked.ask("g", 5, demand("bulk", priority=PriorityClass.BULK, waited_s=0.1), 0.1)) == [(5, Queued())]
    assert told(asked.next(0.1)) == [(4, Grant("r"))]


def test_replica_that_is_gone_while_a_request_waits_ends_the_wait_when_its_place_would_be_given() -> None:
    state = state_of(1)
    state.connect_replica(Replica("s", Pool.GENERATION, "m", "s:1", 1), 1, 0.0)
    asked = Admissions(state, LIMITS)
    for lease_id in (1, 2):
        asked.ask("g", lease_id, demand(), 0.0)
    assert told(asked.ask("g", 3, replace(demand(), excluded=("r",)), 0.0)) == [(3, Queued())]
    state.change_phase("s", ReplicaPhase.UNHEALTHY)
    for lease_id in (1, 2):
        asked.settle("g", Settled(lease_id), 1.0)
    answers = asked.next(1.0)
    assert [answer.lease_id for answer in answers] == [3]
    assert error_of(answers).reason is Reason.NO_READY_REPLICA


def test_gateway_that_is_gone_leaves_nothing_that_waits() -> None:
    asked = admissions()
    asked.ask("g", 1, demand(), 0.0)
    asked.ask("h", 1, demand(), 0.0)
    asked.drop_gateway_queue("h")
    asked.settle("g", Settled(1), 1.0)
    assert asked.next(1.0) == []


def test_tenants_are_shown_with_what_they_have_the_busiest_first() -> None:
    asked = admissions()
    asked.ask("g", 1, demand("a"), 0.0)
    for lease_id in (2, 3):
        asked.ask("g", lease_id, demand("b"), 0.0)
    first, second = asked.tenants(10)
    assert (first.tenant, first.running_requests, first.waiting_requests, first.waiting_tokens) == ("b", 0, 2, 40)
    assert (second.tenant, second.running_requests, second.running_tokens, second.waiting_requests) == ("a", 1, 20, 0)
    assert second.served > first.served
    assert asked.tenants(1) == (first,)


class AllAnswered(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request has one final answer, and no replica more than it takes."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 0.0
        self.state = state_of(3)
        self.asked = Admissions(self.state, LIMITS)
        self.numbers = iter(range(1, 10_000))
        self.waiting: set[int] = set()
        self.running: set[int] = set()
        self.finals: Counter[int] = Counter()

    def hear(self, answers: list[Notification]) -> None:
        for answer in answers:
            match answer.outcome:
                case Queued():
                    assert answer.lease_id in self.waiting
                case Preempt():
                    assert answer.lease_id in self.running
                case Grant():
                    self.finals[answer.lease_id] += 1
                    self.waiting.discard(answer.lease_id)
                    self.running.add(answer.lease_id)
                case ServeError():
                    self.finals[answer.lease_id] += 1
                    self.waiting.discard(answer.lease_id)

    @rule(tenant=st.sampled_from("ab"), priority=st.sampled_from(PriorityClass), left_s=st.floats(0.1, 100))
    def ask(self, tenant: str, priority: PriorityClass, left_s: float) -> None:
        number = next(self.numbers)
        self.waiting.add(number)
        self.hear(self.asked.ask("g", number, demand(tenant, priority=priority, time_left_s=left_s), self.now_s))

    @rule(data=st.data(), output=st.integers(0, 10))
    def end(self, data: st.DataObject, output: int) -> None:
        if self.running:
            number = data.draw(st.sampled_from(sorted(self.running)))
            self.running.discard(number)
            self.asked.settle("g", Settled(number, 0, output), self.now_s)
            self.hear(self.asked.next(self.now_s))

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.waiting:
            number = data.draw(st.sampled_from(sorted(self.waiting)))
            self.waiting.discard(number)
            self.asked.settle("g", Settled(number), self.now_s)

    @rule(phase=st.sampled_from([ReplicaPhase.READY, ReplicaPhase.UNHEALTHY]))
    def change_replica(self, phase: ReplicaPhase) -> None:
        self.state.change_phase("r", phase)
        self.hear(self.asked.next(self.now_s))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.hear(self.asked.expire(self.now_s))
        self.hear(self.asked.next(self.now_s))

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "asked"):
            assert set(self.finals.values()) <= {1}
            assert len(self.asked.queue) == len(self.waiting) <= LIMITS.max_requests
            assert self.state.outstanding("r").requests == len(self.running) <= 3


TestAllAnswered = AllAnswered.TestCase
TestAllAnswered.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
