"""The default policy as timelines: its decisions, second by second."""

import math

import pytest

from autoscaling.policies.decision import Decision
from autoscaling.policies.token_aware import token_aware
from autoscaling.signals import BULK, PoolSignals
from tests.unit.autoscaling.policies.timelines import REPLICAS_PER_REQUEST_PER_S, SPEC_WITH_ZERO, demand, signals, timeline


def rate_for(replicas: float) -> float:
    """Returns the requests per second that keep this many replicas busy."""
    return replicas / REPLICAS_PER_REQUEST_PER_S


def test_token_aware_steady_load_converges_near_its_demand_and_stays() -> None:
    found = timeline(token_aware(), lambda _, count: signals(rate=rate_for(10.0), ready=count), 3600)
    assert 10 <= found[-1].replicas <= 13
    assert len({decision.replicas for decision in found[900:]}) == 1


def test_token_aware_fivefold_jump_is_provided_for_within_seconds() -> None:
    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate_for(2.0) * (5 if second >= 1200 else 1), ready=2 if second < 1260 else count)

    found = timeline(token_aware(), seen, 1300)
    assert found[1199].replicas <= 3
    assert found[1212].replicas >= 10
    assert any("new demand level" in decision.reason for decision in found[1200:1212])


def test_token_aware_jump_is_provided_for_in_one_action() -> None:
    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate_for(2.0) * (8 if second >= 1201 else 1), ready=2 if second < 1260 else count)

    found = timeline(token_aware(), seen, 1215)
    assert found[1201].replicas <= 3
    assert found[1204].replicas == found[1214].replicas


def test_token_aware_bulk_requests_never_scale_up() -> None:
    bulk = PoolSignals(ready_replicas=1, by_class={BULK: demand(500.0, waiting=10_000.0)}, running_requests=50)
    found = timeline(token_aware(), lambda _s, _c: bulk, 900)
    assert {decision.replicas for decision in found} == {1}


def test_token_aware_bulk_requests_do_not_prevent_scaling_to_zero() -> None:
    bulk = PoolSignals(ready_replicas=1, by_class={BULK: demand(5.0, waiting=10.0)})
    found = timeline(token_aware(), lambda _s, _c: bulk, 900, SPEC_WITH_ZERO)
    assert found[-1] == Decision(0, "no requests for 899 s")


def test_token_aware_first_request_wakes_a_pool_at_zero() -> None:
    def seen(second: int, count: int) -> PoolSignals:
        return signals(ready=0 if count == 0 else 1, waiting=3.0 if second >= 700 else 0.0)

    found = timeline(token_aware(), seen, 720, SPEC_WITH_ZERO)
    assert found[699].replicas == 0
    assert found[700] == Decision(1, "requests arrived at a pool scaled to zero, 3 are waiting")


def test_token_aware_keeps_the_replicas_that_running_requests_need() -> None:
    def seen(_second: int, count: int) -> PoolSignals:
        return signals(rate=0.01, ready=max(count, 4), running=330.0)

    found = timeline(token_aware(), seen, 1500)
    assert min(decision.replicas for decision in found) == 4


def test_token_aware_load_that_oscillates_within_a_start_up_does_not_flap() -> None:
    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate_for(5.0) * (1 + math.sin(second / 10)), ready=count)

    found = timeline(token_aware(), seen, 5400)
    changes = [second for second in range(1, len(found)) if found[second].replicas != found[second - 1].replicas and second > 1200]
    assert len(changes) <= 4
    assert found[-1].replicas <= 15


@pytest.mark.parametrize("startup_s", [30.0, 240.0])
def test_token_aware_ramp_is_provided_for_one_start_up_ahead(startup_s: float) -> None:
    rise_per_s = rate_for(1 / 300)  # one more replica every five minutes

    def seen(second: int, count: int) -> PoolSignals:
        return signals(rate=rate_for(5) + rise_per_s * second, ready=count, startup_s=startup_s)

    found = timeline(token_aware(), seen, 3000)
    needed_then = 5 + (3000 + startup_s) / 300
    assert found[-1].replicas >= needed_then - 0.5
