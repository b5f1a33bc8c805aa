"""Ray Serve's policies as timelines."""

from autoscaling.policies.ray_serve import target_ongoing_requests, target_ttft
from tests.unit.autoscaling.policies.timelines import signals, timeline


def test_target_ongoing_requests_overload_scales_up_after_its_delay() -> None:
    found = timeline(target_ongoing_requests(10.0), lambda _, count: signals(ready=count, running=40.0), 40)
    assert {decision.replicas for decision in found[:30]} == {1}
    assert found[30].replicas == 4
    assert "ratio of requests in flight to the target is 4.00" in found[30].reason


def test_target_ongoing_requests_lower_load_scales_down_after_ten_minutes() -> None:
    found = timeline(target_ongoing_requests(10.0), lambda _, count: signals(ready=count if count > 1 else 4, running=10.0), 700)
    assert found[599].replicas == 4
    assert found[-1].replicas < 4


def test_target_ttft_twice_the_target_doubles_the_replicas() -> None:
    found = timeline(target_ttft(1.0), lambda _, count: signals(ready=max(3, count), ttft_mean_s=4.0), 31)
    assert found[-1].replicas == 6
