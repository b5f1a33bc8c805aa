"""llm-d's policy as timelines."""

from autoscaling.policies.llm_d import saturation
from tests.unit.autoscaling.policies.timelines import signals, timeline


def test_saturation_filling_kv_cache_adds_one_replica_at_a_time() -> None:
    found = timeline(saturation(), lambda _, count: signals(ready=count, running=5.0, kv_usage_fraction=0.75), 100)
    assert [found[second].replicas for second in (0, 31, 61, 91)] == [2, 3, 4, 5]


def test_saturation_load_that_would_not_fit_on_one_replica_fewer_keeps_the_size() -> None:
    found = timeline(saturation(), lambda _, count: signals(ready=2, running=5.0, kv_usage_fraction=0.40), 60)
    assert {decision.replicas for decision in found} == {2}
