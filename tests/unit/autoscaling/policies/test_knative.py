"""Knative's policy as a timeline."""

from autoscaling.policies.knative import kpa
from autoscaling.signals import PoolSignals
from tests.unit.autoscaling.policies.timelines import signals, timeline


def test_kpa_panic_does_not_scale_down_for_a_stable_window() -> None:
    def seen(second: int, _count: int) -> PoolSignals:
        return signals(ready=2, running=200.0 if 60 <= second < 70 else 2.0)

    found = timeline(kpa(20.0), seen, 200)
    assert found[59].replicas == 1
    assert found[66].replicas >= 10
    assert min(decision.replicas for decision in found[66:120]) >= 10
    assert found[-1].replicas == 1
