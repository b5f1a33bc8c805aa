"""What demand comes to in replicas, how it is replayed, and where its level goes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies.demand_replay import enter, needed, reaction, replay
from autoscaling.policies.level_forecast import highest_mean, steadiness, times_to_level_ahead
from autoscaling.signals import Capacity, PoolSpec, Targets

CAPACITY = Capacity(
    fixed_s=0.02, per_sequence_s=1e-4, per_resident_token_s=4e-7, per_prompt_token_s=1e-4, kv_tokens=100_000, max_requests=96
)
SERIES = st.lists(st.floats(0, 50), min_size=1, max_size=200)


def test_request_is_bound_by_decoding_where_answers_are_long() -> None:
    roomy = replace(CAPACITY, kv_tokens=10**9, max_requests=10**6)
    assert roomy.replicas_of_request(100, 500, 0.1) == pytest.approx(roomy.request_work_s(100, 500) / 0.8)


def test_request_is_bound_by_memory_where_caches_are_small() -> None:
    small = Capacity(0.001, 1e-6, 1e-9, 1e-6, kv_tokens=2000, max_requests=96)
    work_s = small.request_work_s(1000, 100)
    pace_s = 0.001 + work_s / (100 * 1050 / 2000)
    assert small.replicas_of_request(1000, 100, 0.1) == pytest.approx(100 * 1050 / 2000 * pace_s)


def test_request_is_bound_by_places_where_a_replica_takes_few() -> None:
    narrow = Capacity(0.001, 1e-6, 1e-9, 1e-6, kv_tokens=10**9, max_requests=2)
    assert narrow.replicas_of_request(10, 100, 0.1) == pytest.approx(100 / 2 * 0.001, rel=0.01)


def test_request_never_fits_a_pace_that_weights_alone_break() -> None:
    assert CAPACITY.replicas_of_request(10, 10, 0.02) == float("inf")


def test_entered_work_is_all_there_and_the_answer_spread() -> None:
    bins: list[float] = []
    enter(bins, 3, 2.0, 4.0, (1000.0, 200.0), CAPACITY, 0.1)
    assert sum(bins) * 2.0 == pytest.approx(4 * CAPACITY.replicas_of_request(1000, 200, 0.1))
    assert bins[:3] == [0.0, 0.0, 0.0]
    assert len(bins) == 3 + 10
    assert bins[3] > bins[4] == pytest.approx(bins[-1])


def test_replay_burst_shorter_than_the_patience_needs_nothing_more() -> None:
    assert needed([1.0] * 20 + [1.9] + [0.5] * 20, bin_s=1.0, patience_s=1.0, miss_fraction=0.0, most=10) == 1


def test_replay_rare_burst_is_missed_as_far_as_the_promise_allows() -> None:
    series = [1.0] * 1000 + [9.0]
    assert needed(series, bin_s=1.0, patience_s=1.0, miss_fraction=0.05, most=20) < needed(
        series, bin_s=1.0, patience_s=1.0, miss_fraction=0.0, most=20
    )


def missed(series: list[float], base: float, reacted: list[float] | None = None) -> float:
    return replay(series, base, reacted or [0.0] * len(series), 1.0, 2.0).missed_fraction


@given(SERIES, st.integers(1, 60))
def test_replay_more_replicas_never_miss_more(series: list[float], replicas: int) -> None:
    assert missed(series, replicas + 1) <= missed(series, replicas) + 1e-9


@given(SERIES, st.floats(0, 0.2), st.integers(1, 5), st.integers(0, 20))
def test_replay_needed_keeps_the_promise_with_what_is_followed(series: list[float], miss_fraction: float, delay: int, hold: int) -> None:
    followed = reaction(series, window=3, delay=delay, hold=hold, ahead=1.0)
    found = needed(series, bin_s=1.0, patience_s=2.0, miss_fraction=miss_fraction, most=100, reacted=followed)
    assert found == 0 or missed(series, found, followed) <= miss_fraction + 1e-9


def test_replay_reaction_in_time_makes_a_base_for_bursts_needless() -> None:
    wave = ([2.0] * 100 + [2.0 + each / 10 for each in range(80)] + [10.0] * 60) * 5
    quick, slow = (reaction(wave, window=3, delay=delay, hold=30, ahead=1.0) for delay in (2, 100))
    with_quick, with_slow = (
        needed(wave, bin_s=1.0, patience_s=2.0, miss_fraction=0.01, most=50, reacted=followed) for followed in (quick, slow)
    )
    assert with_quick < 6 < with_slow


def test_reaction_is_ready_only_after_its_delay_and_held() -> None:
    ready = reaction([0.0] * 20 + [4.0] * 5 + [0.0] * 40, window=2, delay=6, hold=10, ahead=0.0)
    assert ready[26] == 0.0
    assert ready[28] == 4.0
    assert max(ready[50:]) == 0.0


def test_level_ahead_follows_a_ramp_and_not_a_jump() -> None:
    ramp = [1 + place / 600 for place in range(1200)]
    times = times_to_level_ahead(ramp, width=150, ahead_bins=120)
    assert ramp[-1] * times[-1] == pytest.approx(1 + (1200 + 120) / 600, rel=0.1)
    jump = [1.0] * 1000 + [5.0] * 200
    assert times_to_level_ahead(jump, width=150, ahead_bins=120)[-1] == pytest.approx(1.0, rel=0.1)


def test_level_ahead_leaves_bursts_as_they_are() -> None:
    bursts = [float(place * 7919 % 600 < 60) * 10 for place in range(3600)]
    assert times_to_level_ahead(bursts, width=15, ahead_bins=50) == pytest.approx([1.0] * 3600, rel=0.5)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_steadiness_is_a_fraction(levels: list[float]) -> None:
    assert 0 <= steadiness(levels) <= 1


def test_highest_mean_of_too_few_is_zero() -> None:
    assert highest_mean([1.0, 2.0], 3) == 0.0
    assert highest_mean([1.0, 3.0, 2.0], 2) == 2.5


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 0)])
def test_spec_bounds_that_cannot_be_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min <= max"):
        PoolSpec(*bounds, CAPACITY)


def test_targets_beyond_reason_are_refused() -> None:
    with pytest.raises(ValueError, match="attainment_fraction"):
        Targets(attainment_fraction=1.0)
