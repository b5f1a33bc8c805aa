"""The search for the cheapest knob that keeps the promise, and what no policy can do without."""

import math

import pytest

from autoscaling.signals import Targets
from autoscaling.simulator.compared_policies import CONTENDERS
from autoscaling.simulator.comparison import Curve, Point, cheapest
from autoscaling.simulator.engine import Request, Urgency
from autoscaling.simulator.hardware import Hardware
from autoscaling.simulator.lower_bound import min_gpu_hours
from autoscaling.simulator.result import Outcome

FORECAST = CONTENDERS["forecast"]
PROMISE = 0.99


def searched(curve: Curve, enough: float, fine: int) -> list[float]:
    """Knobs that are tried where all from `enough` on keep the promise, and cost what they are."""
    tried: list[float] = []
    while knobs := curve.next_knobs(5, fine, PROMISE):
        tried += knobs
        points = [
            Point(curve.contender, knob, 1.0 if knob >= enough else 0.5, Outcome(3600.0, 30.0, gpu_s=3600.0 * knob)) for knob in knobs
        ]
        curve.add(points)
    return tried


@pytest.mark.parametrize("enough", [1.0, 1.5, 3.0, 12.0])
def test_grid_is_made_finer_around_the_promise(enough: float) -> None:
    curve = Curve("forecast", [])
    tried = searched(curve, enough, fine=4)
    best = cheapest(curve.points, PROMISE)
    assert best is not None
    assert enough <= best.knob <= 1.06 * enough
    assert len(tried) == 9
    assert [point.knob for point in curve.points] == sorted(tried, reverse=True)


def test_grid_whose_cheap_end_keeps_the_promise_goes_on_beyond_it() -> None:
    curve = Curve("forecast", [])
    tried = searched(curve, 0.6, fine=4)
    best = cheapest(curve.points, PROMISE)
    assert best is not None
    assert 0.6 <= best.knob <= 1.06 * 0.6
    assert len(tried) == 11


@pytest.mark.parametrize("enough", [0.95, 1.5, 2.0, 4.0, 14.0])
def test_search_around_a_known_knob_ends_as_near_with_fewer_runs(enough: float) -> None:
    curve = Curve("forecast", [], around=2.0)
    tried = searched(curve, enough, fine=2)
    best = cheapest(curve.points, PROMISE)
    assert best is not None
    assert enough <= best.knob <= 1.5 * enough
    assert len(tried) <= 8
    if 1.75 <= enough <= 2.2:
        assert len(tried) == 5
        assert best.knob <= 1.06 * enough


def test_search_that_nothing_satisfies_ends() -> None:
    assert searched(Curve("forecast", []), math.inf, fine=4) == pytest.approx(
        [FORECAST.dear * (FORECAST.cheap / FORECAST.dear) ** (place / 4) for place in range(5)]
    )
    assert len(searched(Curve("forecast", [], around=2.0), math.inf, fine=4)) == 7


def test_min_is_the_work_of_what_the_promise_does_not_spare() -> None:
    spec = Hardware().spec(1, 8, 30.0, Targets(attainment_fraction=0.5))
    one_s = spec.capacity.request_work_s(500, 100) / (1 - spec.capacity.fixed_s / spec.targets.tpot_s)
    requests = [
        Request(1.0, 500, 100),  # before the span
        Request(10.0, 500, 100),
        Request(11.0, 1500, 500),  # the dearest half
        Request(12.0, 500, 100, urgency=Urgency.BULK),
    ]
    assert min_gpu_hours(requests, spec, 5.0, 20.0) == pytest.approx(one_s * spec.gpus_per_replica / 3600)
    assert min_gpu_hours([], spec, 5.0, 20.0) == 0
    impossible = Hardware().spec(1, 8, 30.0, Targets(tpot_s=0.001))
    assert min_gpu_hours(requests, impossible, 5.0, 20.0) == math.inf
