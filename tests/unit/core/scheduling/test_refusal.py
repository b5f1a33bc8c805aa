"""Errors and retry delays of refused requests."""

import pytest

from neox_serve.core.cluster import Demand
from neox_serve.core.errors import Reason
from neox_serve.core.scheduling.refusal import MAX_RETRY_S, MIN_RETRY_S, UNKNOWN_SLOT_INTERVAL_S, PoolFlow, next_slot_s, refusal
from neox_serve.core.scheduling.routing import RoutingFailure
from neox_serve.core.types import Pool

DEMAND = Demand(Pool.GENERATION, "m", 1, 1)
FLOW = PoolFlow(requests=10, tokens=4000, tokens_per_second=200.0)  # 20 s of work: a slot every 2 s


def test_refused_clients_are_promised_consecutive_slots() -> None:
    first_s = next_slot_s(0.0, FLOW, now_s=100.0)
    second_s = next_slot_s(first_s, FLOW, now_s=100.5)
    assert (first_s, second_s) == (102.0, 104.0)


def test_promised_slots_in_the_past_are_ignored() -> None:
    assert next_slot_s(50.0, FLOW, now_s=100.0) == 102.0


def test_promised_slots_are_bounded() -> None:
    far_s = next_slot_s(10**6, FLOW, now_s=100.0)
    near_s = next_slot_s(0.0, PoolFlow(1000, 1000, 10**9), now_s=100.0)
    assert (far_s - 100, near_s - 100) == pytest.approx((MAX_RETRY_S, MIN_RETRY_S))


def test_pool_without_a_rate_uses_the_default_interval() -> None:
    assert PoolFlow(10, 4000, 0.0).slot_interval_s == UNKNOWN_SLOT_INTERVAL_S


@pytest.mark.parametrize(
    ("failure", "reason", "waiting_helps"),
    [
        (RoutingFailure.UNKNOWN_MODEL, Reason.UNKNOWN_MODEL, False),
        (RoutingFailure.NOT_READY, Reason.NO_READY_REPLICA, True),
        (RoutingFailure.FULL, Reason.OVERLOADED, True),
    ],
)
def test_refusal_has_the_reason_and_a_delay_only_if_waiting_helps(failure: RoutingFailure, reason: Reason, *, waiting_helps: bool) -> None:
    error = refusal(failure, DEMAND, retry_after_s=2.0)
    assert error.reason is reason
    assert (error.retry_after_s is not None) == waiting_helps
