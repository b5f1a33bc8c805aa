"""The forecast of the demand level."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies.level_forecast import factors_to_expected_level, highest_mean, steadiness


def test_factors_to_expected_level_follow_a_ramp_but_not_a_jump() -> None:
    ramp = [1 + place / 600 for place in range(1200)]
    factors = factors_to_expected_level(ramp, width=150, ahead_bins=120)
    assert ramp[-1] * factors[-1] == pytest.approx(1 + (1200 + 120) / 600, rel=0.1)
    jump = [1.0] * 1000 + [5.0] * 200
    assert factors_to_expected_level(jump, width=150, ahead_bins=120)[-1] == pytest.approx(1.0, rel=0.1)


def test_factors_to_expected_level_bursty_traffic_is_not_scaled() -> None:
    bursts = [float(place * 7919 % 600 < 60) * 10 for place in range(3600)]
    assert factors_to_expected_level(bursts, width=15, ahead_bins=50) == pytest.approx([1.0] * 3600, rel=0.5)


@pytest.mark.parametrize("width", [1, 2, 5, 6])
def test_factors_to_expected_level_returns_one_factor_per_bin(width: int) -> None:
    assert len(factors_to_expected_level([1.0, 3.0, 2.0] * 4, width, ahead_bins=3)) == 12


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_steadiness_is_a_fraction(levels: list[float]) -> None:
    assert 0 <= steadiness(levels) <= 1


def test_highest_mean_series_shorter_than_the_width_is_zero() -> None:
    assert highest_mean([1.0, 2.0], 3) == 0.0
    assert highest_mean([1.0, 3.0, 2.0], 2) == 2.5
