"""Ray Serve's built-in policies, reimplemented for comparison.

Source: ray/serve/autoscaling_policy.py and ray/serve/config.py of Ray 2.60. The wanted count is the current count times the ratio of a
metric to its target, averaged over look_back_s. A change takes effect after it has been wanted continuously for upscale_delay_s or
downscale_delay_s. Scaling down stops at 1, except for the step from 1 to 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec


@dataclass(frozen=True, slots=True)
class Delays:
    """Ray Serve's timing parameters, with its defaults."""

    look_back_s: float = 30.0
    """Window over which the metric is averaged."""
    upscale_delay_s: float = 30.0
    """How long a larger count must be wanted before it takes effect."""
    downscale_delay_s: float = 600.0
    """How long a smaller count must be wanted before it takes effect."""


def target_ongoing_requests(target_requests: float, delays: Delays = Delays()) -> Policy:
    """Returns a policy that keeps the running and waiting requests per replica at `target_requests`."""

    def metric_ratio(signals: PoolSignals, _spec: PoolSpec) -> float | None:
        return signals.requests / (target_requests * max(1, signals.ready_replicas))

    return _proportional(metric_ratio, delays, "ratio of requests in flight to the target")


def target_ttft(target_fraction: float = 1.0, delays: Delays = Delays()) -> Policy:
    """Returns a policy that keeps the mean TTFT at `target_fraction` of the pool's target.

    It applies Serve's proportional rule to a TTFT metric, as Serve's guide to custom policies does with engine metrics.
    """

    def metric_ratio(signals: PoolSignals, spec: PoolSpec) -> float | None:
        return None if signals.ttft_mean_s is None else signals.ttft_mean_s / (target_fraction * spec.targets.ttft_s)

    return _proportional(metric_ratio, delays, "ratio of TTFT to the target")


def _proportional(metric_ratio: Callable[[PoolSignals, PoolSpec], float | None], delays: Delays, name: str) -> Policy:
    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        history = [entry for entry in state.get("history", []) if entry[0] > now_s - delays.look_back_s]
        if (ratio := metric_ratio(signals, spec)) is not None:
            history.append([now_s, ratio])
        target = state.get("target", signals.replicas)
        if signals.ready_replicas == 0:
            wanted = max(target, 1 if signals.requests else 0)
            return _decided(spec, wanted, "no replica is ready", history)
        if not history:
            return _decided(spec, target, f"no measurement yet of the {name}", history)
        mean = sum(entry[1] for entry in history) / len(history)
        wanted = spec.bounded(math.ceil(signals.ready_replicas * mean))
        direction = (wanted > target) - (wanted < target)
        since_s = state.get("since_s", now_s) if direction and direction == state.get("direction") else now_s
        delay_s = delays.upscale_delay_s if direction > 0 else delays.downscale_delay_s
        reason = f"{name} is {mean:.2f} with {signals.ready_replicas} replicas, which needs {wanted}"
        if direction and now_s - since_s >= delay_s:
            return _decided(spec, wanted, reason, history)
        decision = Decision(
            spec.bounded(target), reason + (f" (for {now_s - since_s:.0f} s; takes effect after {delay_s:.0f} s)" if direction else "")
        )
        return decision, {"target": target, "direction": direction, "since_s": since_s, "history": history}

    return policy


def _decided(spec: PoolSpec, wanted: int, reason: str, history: list[list[float]]) -> tuple[Decision, State]:
    target = spec.bounded(wanted)
    return Decision(target, reason), {"target": target, "history": history}
