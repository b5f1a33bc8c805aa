"""Policies as timelines: what they answer, second by second, to what they see."""

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies import POLICIES
from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.dynamo import forecast
from autoscaling.policies.knative import kpa
from autoscaling.policies.llm_d import saturation
from autoscaling.policies.ray_serve import target_ongoing_requests, target_ttft
from autoscaling.policies.token_aware import token_aware
from autoscaling.signals import BULK, Capacity, ClassDemand, PoolSignals, PoolSpec

CAPACITY = Capacity(
    fixed_s=0.02, per_sequence_s=1e-4, per_resident_token_s=4e-7, per_prompt_token_s=1e-4, kv_tokens=100_000, max_requests=96
)
SPEC = PoolSpec(min_replicas=1, max_replicas=40, capacity=CAPACITY, startup_s=60.0)
TO_ZERO = PoolSpec(min_replicas=0, max_replicas=40, capacity=CAPACITY, startup_s=60.0)
ONE_A_SECOND = CAPACITY.replicas_of_request(1000, 200, SPEC.targets.tpot_s)


def demand(rate: float, waiting: float = 0.0) -> ClassDemand:
    """Requests of 1,000 and 200 tokens, so many a second."""
    return ClassDemand(waiting, waiting * 1200, rate, rate * 1000, rate * 200)


def signals(rate: float = 0.0, ready: int = 1, running: float = 0.0, waiting: float = 0.0, **others: float) -> PoolSignals:
    return PoolSignals(
        ready_replicas=ready,
        by_class={"default": demand(rate, waiting)},
        running_requests=running,
        running_tokens=running * 1100,
        **others,  # type: ignore[arg-type]
    )


def timeline(
    policy: Policy, seen: Callable[[int, int], PoolSignals], seconds: int, spec: PoolSpec = SPEC, state: State | None = None
) -> list[Decision]:
    """A decision a second. seen: signals by second and by the count decided before, which is there at once."""
    state, found, count = state or {}, list[Decision](), seen(0, 1).replicas
    for second in range(seconds):
        decision, state = policy(seen(second, count), spec, state, float(second))
        found.append(decision)
        count = decision.replicas
    return found


@given(
    name=st.sampled_from(sorted(POLICIES)),
    history=st.lists(
        st.builds(
            signals,
            rate=st.floats(0, 500),
            ready=st.integers(0, 60),
            running=st.floats(0, 5000),
            waiting=st.floats(0, 5000),
            kv_usage_fraction=st.floats(0, 1),
            ttft_mean_s=st.none() | st.floats(0, 60),
        ),
        min_size=1,
        max_size=30,
    ),
    spec=st.sampled_from([SPEC, TO_ZERO, PoolSpec(2, 3, CAPACITY)]),
)
def test_any_policy_stays_within_its_bounds_and_goes_on_from_a_state_kept_as_json(
    name: str, history: list[PoolSignals], spec: PoolSpec
) -> None:
    policy = POLICIES[name]
    state: State = {}
    kept: State = {}
    for second, seen in enumerate(history):
        decision, state = policy(seen, spec, state, float(second))
        again, kept = policy(seen, spec, json.loads(json.dumps(kept)), float(second))
        assert spec.min_replicas <= decision.replicas <= spec.max_replicas
        assert decision.reason
        assert again == decision


def test_target_ongoing_requests_overload_scales_up_only_after_its_delay() -> None:
    found = timeline(target_ongoing_requests(10.0), lambda _, count: signals(ready=count, running=40.0), 40)
    assert {decision.replicas for decision in found[:30]} == {1}
    assert found[30].replicas == 4
    assert "requests in flight over target" in found[30].reason


def test_target_ongoing_requests_load_that_leaves_scales_down_after_ten_minutes() -> None:
    found = timeline(target_ongoing_requests(10.0), lambda _, count: signals(ready=count if count > 1 else 4, running=10.0), 700)
    assert found[599].replicas == 4
    assert found[-1].replicas < 4


def test_target_ttft_twice_the_target_doubles() -> None:
    found = timeline(target_ttft(1.0), lambda _, count: signals(ready=max(3, count), ttft_mean_s=4.0), 31)
    assert found[-1].replicas == 6


def test_kpa_panic_does_not_scale_down_for_a_stable_window() -> None:
    def seen(second: int, count: int) -> PoolSignals:
        return signals(ready=2, running=200.0 if 60 <= second < 70 else 2.0)

    found = timeline(kpa(20.0), seen, 200)
    assert found[59].replicas == 1
    assert found[66].replicas >= 10
    assert min(decision.replicas for decision in found[66:120]) >= 10
    assert found[-1].replicas == 1


def test_saturation_adds_one_replica_at_a_time_while_the_cache_fills() -> None:
    found = timeline(saturation(), lambda _, count: signals(ready=count, running=5.0, kv_usage_fraction=0.75), 100)
    assert [found[second].replicas for second in (0, 31, 61, 91)] == [2, 3, 4, 5]


def test_saturation_keeps_a_replica_whose_load_the_others_could_not_take() -> None:
    found = timeline(saturation(), lambda _, count: signals(ready=2, running=5.0, kv_usage_fraction=0.40), 60)
    assert {decision.replicas for decision in found} == {2}


def test_forecast_provides_for_the_trend() -> None:
    found = timeline(forecast(), lambda second, count: signals(rate=2 + second / 100, ready=count), 1000)
    steady = timeline(forecast(), lambda _, count: signals(rate=2 + 1000 / 100, ready=count), 1000)
    assert found[-1].replicas >= steady[-1].replicas - 1
    assert found[-1].replicas > found[200].replicas


def test_token_aware_steady_load_ends_near_what_it_needs_and_stays() -> None:
    rate = 10.0 / ONE_A_SECOND
    found = timeline(token_aware(), lambda _, count: signals(rate=rate, ready=count), 3600)
    assert 10 <= found[-1].replicas <= 13
    assert len({decision.replicas for decision in found[900:]}) == 1


def test_token_aware_jump_asks_at_once_for_what_it_brings() -> None:
    rate = 2.0 / ONE_A_SECOND

    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate * (5 if second >= 1200 else 1), ready=2 if second < 1260 else count)

    found = timeline(token_aware(), seen, 1300)
    assert found[1199].replicas <= 3
    assert found[1212].replicas >= 10
    assert any("what comes is new" in decision.reason for decision in found[1200:1212])


def test_token_aware_jump_is_asked_for_at_once_and_not_by_and_by() -> None:
    rate = 2.0 / ONE_A_SECOND

    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate * (8 if second >= 1201 else 1), ready=2 if second < 1260 else count)

    found = timeline(token_aware(), seen, 1215)
    assert found[1201].replicas <= 3
    assert found[1204].replicas == found[1214].replicas


def test_token_aware_bulk_alone_never_asks_for_more() -> None:
    bulk = PoolSignals(ready_replicas=1, by_class={BULK: demand(500.0, waiting=10_000.0)}, running_requests=50)
    found = timeline(token_aware(), lambda _s, _c: bulk, 900)
    assert {decision.replicas for decision in found} == {1}


def test_token_aware_bulk_alone_lets_a_pool_go_to_zero() -> None:
    bulk = PoolSignals(ready_replicas=1, by_class={BULK: demand(5.0, waiting=10.0)})
    found = timeline(token_aware(), lambda _s, _c: bulk, 900, TO_ZERO)
    assert found[-1] == Decision(0, f"nothing has come for {899 - 0} s")


def test_token_aware_first_request_brings_a_pool_back_from_zero() -> None:
    def seen(second: int, count: int) -> PoolSignals:
        return signals(ready=0 if count == 0 else 1, waiting=3.0 if second >= 700 else 0.0)

    found = timeline(token_aware(), seen, 720, TO_ZERO)
    assert found[699].replicas == 0
    assert found[700] == Decision(1, "requests have come to a pool at zero, 3 wait")


def test_token_aware_keeps_what_running_requests_would_not_fit_without() -> None:
    def seen(_second: int, count: int) -> PoolSignals:
        return signals(rate=0.01, ready=max(count, 4), running=330.0)

    found = timeline(token_aware(), seen, 1500)
    assert min(decision.replicas for decision in found) == 4


def test_token_aware_does_not_flap_on_a_load_that_swings_within_a_start_up() -> None:
    rate = 5.0 / ONE_A_SECOND

    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate * (1 + math.sin(second / 10)), ready=count)

    found = timeline(token_aware(), seen, 5400)
    changes = [second for second in range(1, len(found)) if found[second].replicas != found[second - 1].replicas and second > 1200]
    assert len(changes) <= 4
    assert found[-1].replicas <= 15


@pytest.mark.parametrize("startup_s", [30.0, 240.0])
def test_token_aware_ramp_is_provided_for_a_start_up_ahead(startup_s: float) -> None:
    per_s = 1 / 300 / ONE_A_SECOND  # one more replica every five minutes

    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=5 / ONE_A_SECOND + per_s * second, ready=count, startup_s=startup_s)

    found = timeline(token_aware(), seen, 3000)
    needed_then = 5 + (3000 + startup_s) / 300
    assert found[-1].replicas >= needed_then - 0.5
