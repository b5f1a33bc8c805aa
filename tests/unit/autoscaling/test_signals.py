"""The demand of a request in replicas, and the validation of pool specifications."""

from dataclasses import replace

import pytest

from autoscaling.signals import Capacity, PoolSpec, Targets

CAPACITY = Capacity(
    fixed_s=0.02, per_sequence_s=1e-4, per_resident_token_s=4e-7, per_prompt_token_s=1e-4, kv_tokens=100_000, max_requests=96
)


def test_replicas_of_request_long_answer_is_bound_by_decoding() -> None:
    unlimited = replace(CAPACITY, kv_tokens=10**9, max_requests=10**6)
    assert unlimited.replicas_of_request(100, 500, 0.1) == pytest.approx(unlimited.request_work_s(100, 500) / 0.8)


def test_replicas_of_request_small_kv_cache_is_bound_by_memory() -> None:
    small = Capacity(0.001, 1e-6, 1e-9, 1e-6, kv_tokens=2000, max_requests=96)
    work_s = small.request_work_s(1000, 100)
    step_s = 0.001 + work_s / (100 * 1050 / 2000)
    assert small.replicas_of_request(1000, 100, 0.1) == pytest.approx(100 * 1050 / 2000 * step_s)


def test_replicas_of_request_low_request_limit_is_bound_by_the_limit() -> None:
    limited = Capacity(0.001, 1e-6, 1e-9, 1e-6, kv_tokens=10**9, max_requests=2)
    assert limited.replicas_of_request(10, 100, 0.1) == pytest.approx(100 / 2 * 0.001, rel=0.01)


def test_replicas_of_request_tpot_not_longer_than_the_fixed_step_time_is_infinite() -> None:
    assert CAPACITY.replicas_of_request(10, 10, 0.02) == float("inf")


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 0)])
def test_pool_spec_inconsistent_bounds_are_rejected(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min <= max"):
        PoolSpec(*bounds, CAPACITY)


def test_targets_attainment_of_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="attainment_fraction"):
        Targets(attainment_fraction=1.0)
