"""How well targets are kept lately."""

import pytest

from autoscaling.attainment import Attained, Attainment
from autoscaling.signals import Targets

TARGETS = Targets(ttft_s=2.0, tpot_s=0.1)


def test_nothing_measured_says_nothing() -> None:
    assert Attainment(TARGETS).report([], [], 1.0) == Attained(None, None, None, None)


def test_reports_of_the_span_count_together_and_older_ones_fall_out() -> None:
    attainment = Attainment(TARGETS, span_s=10.0)
    assert attainment.report([1.0, 3.0], [0.05], 0.0) == Attained(0.5, 2.0, 1.0, 0.05)
    assert attainment.report([2.0], [0.2], 9.0) == pytest.approx((2 / 3, 2.0, 0.5, 0.125))
    assert attainment.report([], [], 10.0) == Attained(1.0, 2.0, 0.0, 0.2)
    assert attainment.report([], [], 19.0) == Attained(None, None, None, None)
