"""Attainment over a sliding window."""

import pytest

from autoscaling.attainment import Attained, Attainment
from autoscaling.signals import Targets

TARGETS = Targets(ttft_s=2.0, tpot_s=0.1)


def test_attainment_no_measurements_is_none() -> None:
    assert Attainment(TARGETS).report([], [], 1.0) == Attained(None, None, None, None)


def test_attainment_combines_reports_in_the_window_and_drops_older_ones() -> None:
    attainment = Attainment(TARGETS, window_s=10.0)
    assert attainment.report([1.0, 3.0], [0.05], 0.0) == Attained(0.5, 2.0, 1.0, 0.05)
    assert attainment.report([2.0], [0.2], 9.0) == pytest.approx((2 / 3, 2.0, 0.5, 0.125))
    assert attainment.report([], [], 10.0) == Attained(1.0, 2.0, 0.0, 0.2)
    assert attainment.report([], [], 19.0) == Attained(None, None, None, None)
