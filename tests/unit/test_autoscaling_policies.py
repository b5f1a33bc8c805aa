"""Autoscaling policies as timelines, and Ray's adapter over a scripted context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies import target_requests
from autoscaling.ray_adapter import TargetRequestsPolicy
from autoscaling.signals import PoolSignals, PoolSpec


def test_target_requests_load_rises_and_falls_replicas_follow() -> None:
    spec = PoolSpec(min_replicas=1, max_replicas=4, target_requests=10)
    timeline = [(0, 1), (10, 1), (11, 2), (35, 4), (90, 4), (20, 2), (3, 1)]
    for now_s, (requests, replicas) in enumerate(timeline):
        assert target_requests(PoolSignals(now_s, 1, requests), spec).replicas == replicas, requests


def test_target_requests_outside_bounds_says_so_in_the_reason() -> None:
    decision = target_requests(PoolSignals(0, 1, 90), PoolSpec(1, 4, 10))
    assert decision.reason == "90 requests at 10 a replica want 9, bounded to [1, 4]"


@given(st.floats(0, 1e6), st.integers(0, 20), st.integers(1, 20), st.floats(0.1, 1e3))
def test_target_requests_any_load_stays_within_bounds_and_never_falls_with_load(
    requests: float, low: int, extra: int, target: float
) -> None:
    spec = PoolSpec(low, low + extra, target)
    here = target_requests(PoolSignals(0, 1, requests), spec).replicas
    more = target_requests(PoolSignals(0, 1, requests * 2), spec).replicas
    assert low <= here <= more <= low + extra


@dataclass
class Report:
    """A value as Serve hands it over."""

    value: float
    timestamp: float = 0.0


@dataclass
class Context:
    """The part of Serve's context that the adapter reads."""

    raw_metrics: Mapping[str, Mapping[Any, Sequence[Report]]] = field(default_factory=dict)
    deployment_name: str = "generation"
    current_num_replicas: int = 1
    target_num_replicas: int = 1
    current_time: float | None = 0.0


def test_adapter_sums_the_latest_report_of_each_replica() -> None:
    policy = TargetRequestsPolicy(min_replicas=1, max_replicas=8, target_requests=4)
    context = Context({"requests": {"a": [Report(100), Report(5)], "b": [Report(8)], "c": []}})
    assert policy(context) == (4, {})


@pytest.mark.parametrize("reports", [{}, {"requests": {}}, {"requests": {"a": []}}])
def test_adapter_without_reports_keeps_the_present_target(reports: dict[str, dict[str, list[Report]]]) -> None:
    policy = TargetRequestsPolicy(min_replicas=0, max_replicas=8, target_requests=4)
    assert policy(Context(reports, target_num_replicas=3)) == (3, {})
