"""The lower bound of GPU-hours that no policy can undercut."""

import math

import pytest

from autoscaling.signals import Targets
from autoscaling.simulator.engine import Request, Urgency
from autoscaling.simulator.hardware import Hardware
from autoscaling.simulator.lower_bound import min_gpu_hours


def test_min_gpu_hours_is_the_work_of_the_cheapest_requests_that_must_meet_the_targets() -> None:
    spec = Hardware().spec(1, 8, 30.0, Targets(attainment_fraction=0.5))
    one_s = spec.capacity.request_work_s(500, 100) / (1 - spec.capacity.fixed_s / spec.targets.tpot_s)
    requests = [
        Request(1.0, 500, 100),  # before the measured period
        Request(10.0, 500, 100),
        Request(11.0, 1500, 500),  # the more expensive half
        Request(12.0, 500, 100, urgency=Urgency.BULK),
    ]
    assert min_gpu_hours(requests, spec, 5.0, 20.0) == pytest.approx(one_s * spec.gpus_per_replica / 3600)
    assert min_gpu_hours([], spec, 5.0, 20.0) == 0
    impossible = Hardware().spec(1, 8, 30.0, Targets(tpot_s=0.001))
    assert min_gpu_hours(requests, impossible, 5.0, 20.0) == math.inf
