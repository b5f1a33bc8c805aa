"""The search for the cheapest knob that meets the attainment target."""

import math

import pytest

from autoscaling.simulator.compared_policies import COMPARED_POLICIES
from autoscaling.simulator.comparison import Curve, Point, cheapest
from autoscaling.simulator.result import SimulationResult

FORECAST = COMPARED_POLICIES["forecast"]
TARGET_FRACTION = 0.99


def search(curve: Curve, enough: float, fine: int) -> list[float]:
    """Returns the knobs that are tried if all from `enough` on meet the target, at a cost equal to the knob."""
    tried: list[float] = []
    while knobs := curve.next_knobs(5, fine, TARGET_FRACTION):
        tried += knobs
        points = [
            Point(curve.policy, knob, 1.0 if knob >= enough else 0.5, SimulationResult(3600.0, 30.0, gpu_s=3600.0 * knob)) for knob in knobs
        ]
        curve.add(points)
    return tried


@pytest.mark.parametrize("enough", [1.0, 1.5, 3.0, 12.0])
def test_search_grid_is_refined_around_the_target(enough: float) -> None:
    curve = Curve("forecast", [])
    tried = search(curve, enough, fine=4)
    best = cheapest(curve.points, TARGET_FRACTION)
    assert best is not None
    assert enough <= best.knob <= 1.06 * enough
    assert len(tried) == 9
    assert [point.knob for point in curve.points] == sorted(tried, reverse=True)


def test_search_cheapest_grid_point_suffices_continues_beyond_the_grid() -> None:
    curve = Curve("forecast", [])
    tried = search(curve, 0.6, fine=4)
    best = cheapest(curve.points, TARGET_FRACTION)
    assert best is not None
    assert 0.6 <= best.knob <= 1.06 * 0.6
    assert len(tried) == 11


@pytest.mark.parametrize("enough", [0.95, 1.5, 2.0, 4.0, 14.0])
def test_search_around_a_known_knob_is_as_precise_with_fewer_runs(enough: float) -> None:
    curve = Curve("forecast", [], around=2.0)
    tried = search(curve, enough, fine=2)
    best = cheapest(curve.points, TARGET_FRACTION)
    assert best is not None
    assert enough <= best.knob <= 1.5 * enough
    assert len(tried) <= 8
    if 1.75 <= enough <= 2.2:
        assert len(tried) == 5
        assert best.knob <= 1.06 * enough


def test_search_no_knob_suffices_ends() -> None:
    assert search(Curve("forecast", []), math.inf, fine=4) == pytest.approx(
        [FORECAST.most_expensive_knob * (FORECAST.cheapest_knob / FORECAST.most_expensive_knob) ** (place / 4) for place in range(5)]
    )
    assert len(search(Curve("forecast", [], around=2.0), math.inf, fine=4)) == 7
