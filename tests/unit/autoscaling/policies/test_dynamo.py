"""Dynamo's policy as a timeline."""

from autoscaling.policies.dynamo import forecast
from tests.unit.autoscaling.policies.timelines import signals, timeline


def test_forecast_rising_load_is_provided_for_in_advance() -> None:
    found = timeline(forecast(), lambda second, count: signals(rate=2 + second / 100, ready=count), 1000)
    steady = timeline(forecast(), lambda _, count: signals(rate=2 + 1000 / 100, ready=count), 1000)
    assert found[-1].replicas >= steady[-1].replicas - 1
    assert found[-1].replicas > found[200].replicas
