"""The fair queue: the order of requests, shedding, and expected waits."""

import math
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from neox_serve.core.scheduling.fair_counters import FairCounters, cost
from neox_serve.core.scheduling.fair_queue import PATIENCE_S, FairQueue, Lane, QueuedRequest, QueueLimits
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool

_keys = count()
G, E = (Pool.GENERATION, "m"), (Pool.EMBEDDING, "m")


def request(tenant: str = "a", arrival_s: float = 0.0, **changes: Any) -> QueuedRequest:
    values: dict[str, Any] = {
        "lane": G,
        "weight": 1.0,
        "priority": PriorityClass.DEFAULT,
        "prompt_tokens": 10,
        "max_output_tokens": 10,
    }
    return QueuedRequest(key=("gateway", next(_keys)), tenant=tenant, arrival_s=arrival_s, **(values | changes))


def queue(*waiting: QueuedRequest, limits: QueueLimits = QueueLimits()) -> FairQueue:  # noqa: B008 - frozen
    made = FairQueue(limits)
    for one in waiting:
        made.put(one, one.arrival_s)
    return made


def drain(fair: FairQueue, now_s: float = 0.0, lane: Lane = G) -> list[QueuedRequest]:
    """Returns all requests in the order in which they leave, each charged at dispatch."""
    order = []
    while (one := fair.pop(lane, now_s)) is not None:
        fair.charge_dispatch(one)
        order.append(one)
    return order


def test_tenants_take_turns_however_many_requests_one_of_them_sends() -> None:
    flood, few = [request("flood") for _ in range(6)], [request("few") for _ in range(2)]
    order = drain(queue(*flood, *few))
    assert {one.tenant for one in order[:2]} == {one.tenant for one in order[2:4]} == {"flood", "few"}


def test_tenant_is_served_in_proportion_to_its_weight() -> None:
    order = drain(queue(*(request(name, weight=weight) for _ in range(30) for name, weight in (("heavy", 3.0), ("light", 1.0)))))
    assert sum(one.tenant == "heavy" for one in order[:20]) == 15


def test_long_requests_count_for_more_than_short_ones() -> None:
    long = [request("long", max_output_tokens=100) for _ in range(10)]
    short = [request("short", max_output_tokens=10) for _ in range(40)]
    first = drain(queue(*long, *short))[:22]
    served = {name: sum(one.tokens for one in first if one.tenant == name) for name in ("long", "short")}
    assert served["long"] == pytest.approx(served["short"], rel=0.5)


def test_higher_class_goes_first_for_any_tenant() -> None:
    bulk, interactive = request("a", priority=PriorityClass.BULK), request("b", priority=PriorityClass.INTERACTIVE)
    fair = queue(bulk, interactive)
    fair.charge_dispatch(request("b"))
    assert drain(fair) == [interactive, bulk]


def test_class_unserved_for_its_patience_is_served_once() -> None:
    patience_s = PATIENCE_S[PriorityClass.BULK]
    fair = queue(
        *(request("a", priority=PriorityClass.BULK) for _ in range(2)), *(request("b", priority=PriorityClass.SYSTEM) for _ in range(4))
    )
    moments = [0.0, patience_s - 0.1, patience_s, patience_s, 2 * patience_s]
    served = [fair.pop(G, now_s) for now_s in moments]
    assert [one.tenant for one in served if one] == ["b", "b", "a", "b", "a"]


def test_backlog_of_one_tenant_does_not_overtake_fresh_requests_of_another() -> None:
    fair = queue(*(request("many") for _ in range(50)))
    fair.charge_dispatch(request("many"))
    fair.put(fresh := request("few", 1_000.0), 1_000.0)
    fair.charge_dispatch(request("many"))
    assert fair.pop(G, 1_000.0) == fresh


def test_earliest_deadline_goes_first_within_a_tenant() -> None:
    late, soon, never = request(deadline_s=9.0), request(deadline_s=5.0), request()
    assert drain(queue(never, late, soon)) == [soon, late, never]


def test_full_lane_does_not_delay_another_lane() -> None:
    embedding, generation = request(lane=E), request(lane=G)
    fair = queue(embedding, generation)
    assert drain(fair, lane=G) == [generation]
    assert fair.lanes() == (E,)


def test_tenant_that_returns_has_no_credit() -> None:
    fair = queue(*(request("busy") for _ in range(20)))
    drain_some = [fair.pop(G, 0.0) for _ in range(10)]
    for one in drain_some:
        assert one is not None
        fair.charge_dispatch(one)
    for _ in range(10):
        fair.put(request("idle"), 1.0)
    order = drain(fair, 1.0)
    assert 4 <= sum(one.tenant == "idle" for one in order[:10]) <= 6


def test_full_queue_sheds_lowest_class_then_most_served_tenant_then_newest() -> None:
    limits = QueueLimits(max_requests=3)
    keep, bulk_old, bulk_new = request("a"), request("b", priority=PriorityClass.BULK), request("c", priority=PriorityClass.BULK)
    fair = queue(keep, bulk_old, limits=limits)
    fair.charge_dispatch(request("b", priority=PriorityClass.BULK))
    assert fair.put(bulk_new, 0.0) == ()
    assert fair.put(first := request("a"), 0.0) == (bulk_old,)
    assert fair.put(request("a"), 0.0) == (bulk_new,)
    assert fair.put(newest := request("a"), 0.0) == (newest,)
    assert {one.key for one in fair.waiting()} >= {keep.key, first.key}


def test_queue_over_its_token_limit_sheds() -> None:
    fair = queue(request(), limits=QueueLimits(max_tokens=30))
    assert fair.put(big := request(prompt_tokens=20), 0.0) == (big,)
    assert fair.depth(G) == (1, 20)


def test_request_past_its_deadline_leaves_the_queue() -> None:
    limits = QueueLimits(max_wait_s=10.0)
    fair = queue(patient := request(), hurried := request(deadline_s=5.0), limits=limits)
    assert fair.expire(4.9) == ()
    assert fair.expire(5.0) == (hurried,)
    assert fair.expire(10.0) == (patient,)
    assert len(fair) == 0


def test_expected_wait_counts_higher_classes_and_a_fair_share_of_the_others() -> None:
    rivals = [request("b") for _ in range(100)]
    above = request("c", priority=PriorityClass.INTERACTIVE)
    mine = request("a")
    wait_s = queue(*rivals, above).expected_wait_s(mine, tokens_per_second=20.0)
    assert wait_s == pytest.approx((20 + 20 + 20) / 20)
    assert queue().expected_wait_s(mine, 0.0) == math.inf


def test_expected_output_follows_what_a_tenant_generates() -> None:
    fair = queue()
    one = request(max_output_tokens=1_000)
    charged = fair.charge_dispatch(one)
    assert charged == cost(10, 0, 1_000)
    fair.charge_end(one, charged, 0, 20)
    assert fair.counter("a") == pytest.approx(cost(10, 0, 20))
    assert fair.charge_dispatch(one) == cost(10, 0, 20)


def test_cached_prompts_are_charged_less() -> None:
    fair = queue()
    fair.charge_dispatch(request("a", cached_tokens=10))
    fair.charge_dispatch(request("b"))
    assert fair.counter("a") < fair.counter("b")


def test_refund_never_takes_a_counter_below_its_lift() -> None:
    counters = FairCounters()
    counters.begin_waiting("a")
    counters.charge("a", 1.0, 100.0)
    counters.begin_waiting("b")
    counters.charge("b", 1.0, -50.0)
    assert counters.value("b") == 100.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=40), st.floats(0.5, 4), st.integers(1, 8))
def test_difference_of_two_backlogged_tenants_stays_within_the_bound(sizes: list[tuple[int, int]], weight: float, slots: int) -> None:
    """Source of the bound: theorem 4.4 of the paper: twice the maximum cost of the running batch, here of `slots` requests."""
    rng = Random(0)
    fair = queue()
    sent = [request(name, weight=w, prompt_tokens=p, max_output_tokens=o) for p, o in sizes for name, w in (("a", weight), ("b", 1.0))]
    for one in sent:
        fair.put(one, 0.0)
    most = max(cost(p, 0, o) for p, o in sizes) / min(weight, 1.0)
    served = {"a": 0.0, "b": 0.0}
    running: list[tuple[QueuedRequest, float]] = []
    while {one.tenant for one in fair.waiting()} == {"a", "b"}:
        while len(running) < slots and (chosen := fair.pop(G, 0.0)) is not None:
            running.append((chosen, fair.charge_dispatch(chosen)))
        if not running:
            break
        ended, charged = running.pop(rng.randrange(len(running)))
        output = rng.randint(0, ended.max_output_tokens)
        fair.charge_end(ended, charged, 0, output)
        served[ended.tenant] += cost(ended.prompt_tokens, 0, output) / ended.weight
        assert abs(served["a"] - served["b"]) <= 2 * slots * most + most


class Fair(RuleBasedStateMachine):
    """Compares the queue with a list that is searched for the next request."""

    @initialize()
    def begin(self) -> None:
        self.fair = FairQueue(QueueLimits(max_requests=8, max_tokens=200, max_wait_s=50.0))
        self.now_s = 0.0
        self.here: dict[Any, tuple[QueuedRequest, int]] = {}
        self.unserved: dict[tuple[Lane, PriorityClass], float] = {}
        self.order = count()

    @rule(
        tenant=st.sampled_from("abc"),
        priority=st.sampled_from(PriorityClass),
        lane=st.sampled_from([G, E]),
        prompt=st.integers(1, 40),
        left_s=st.one_of(st.just(math.inf), st.floats(1, 60)),
    )
    def put(self, tenant: str, priority: PriorityClass, lane: Lane, prompt: int, left_s: float) -> None:
        one = request(tenant, self.now_s, priority=priority, lane=lane, prompt_tokens=prompt, deadline_s=self.now_s + left_s)
        shed = self.fair.put(one, self.now_s)
        self.unserved.setdefault((lane, priority), self.now_s)
        self.here[one.key] = (one, next(self.order))
        for gone in shed:
            assert gone.priority == max(other.priority for other, _ in self.here.values() if other.lane == gone.lane)
            self.leave(gone.key)

    @rule(lane=st.sampled_from([G, E]))
    def pop(self, lane: Lane) -> None:
        mine = [entry for entry in self.here.values() if entry[0].lane == lane]
        classes = {one.priority for one, _ in mine}
        late = {level: self.now_s - self.unserved[lane, level] - PATIENCE_S.get(level, math.inf) for level in classes}
        chosen = max(late, key=lambda level: late[level]) if late and max(late.values()) >= 0 else min(classes, default=None)

        def place(entry: tuple[QueuedRequest, int]) -> Any:
            one, order = entry
            return self.fair.counter(one.tenant), one.tenant, one.deadline_s, order

        wanted = min((entry for entry in mine if entry[0].priority == chosen), key=place, default=None)
        popped = self.fair.pop(lane, self.now_s)
        assert popped == (wanted[0] if wanted else None)
        if popped is not None:
            self.unserved[lane, popped.priority] = self.now_s
            self.leave(popped.key)
            self.fair.charge_dispatch(popped)

    def leave(self, key: Any) -> QueuedRequest:
        one, _ = self.here.pop(key)
        if not any((other.lane, other.priority) == (one.lane, one.priority) for other, _ in self.here.values()):
            self.unserved.pop((one.lane, one.priority), None)
        return one

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.here)))
        assert self.fair.remove(key) == self.leave(key)
        assert self.fair.remove(key) is None

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        gone = {one.key for one in self.fair.expire(self.now_s)}
        late = {k for k, (one, _) in self.here.items() if self.now_s >= one.deadline_s or self.now_s - one.arrival_s >= 50.0}
        assert gone == late
        for key in gone:
            self.leave(key)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "fair"):
            assert {one.key for one in self.fair.waiting()} == set(self.here)
            for lane in (G, E):
                mine = [one for one, _ in self.here.values() if one.lane == lane]
                assert self.fair.depth(lane) == (len(mine), sum(one.tokens for one in mine))


TestFair = Fair.TestCase
TestFair.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
