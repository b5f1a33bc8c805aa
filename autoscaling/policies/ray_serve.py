"""Ray Serve's own policies, as peers.

Source: ray/serve/autoscaling_policy.py and ray/serve/config.py of Ray 2.60: the wanted count is the present one times what a figure is over
its target, averaged over look_back_s; a change takes effect when it has been wanted without a break for upscale_delay_s or
downscale_delay_s, and scaling down stops at 1 unless it goes from 1 to 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec


@dataclass(frozen=True, slots=True)
class Delays:
    """Ray Serve's defaults."""

    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


def target_ongoing_requests(target_requests: float, delays: Delays = Delays()) -> Policy:
    """As many replicas as carry the requests in flight or waiting at `target_requests` each."""

    def figure(signals: PoolSignals, _spec: PoolSpec) -> float | None:
        return signals.requests / (target_requests * max(1, signals.ready_replicas))

    return _proportional(figure, delays, "requests in flight over target")


def target_ttft(target_fraction: float = 1.0, delays: Delays = Delays()) -> Policy:
    """The mean TTFT held at `target_fraction` of the pool's target: Serve's proportional rule over a TTFT metric, as its guide to custom
    policies has it for any metric of the engine."""

    def figure(signals: PoolSignals, spec: PoolSpec) -> float | None:
        return None if signals.ttft_mean_s is None else signals.ttft_mean_s / (target_fraction * spec.targets.ttft_s)

    return _proportional(figure, delays, "TTFT over target")


def _proportional(figure: Callable[[PoolSignals, PoolSpec], float | None], delays: Delays, name: str) -> Policy:
    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        history = [entry for entry in state.get("history", []) if entry[0] > now_s - delays.look_back_s]
        if (ratio := figure(signals, spec)) is not None:
            history.append([now_s, ratio])
        target = state.get("target", signals.replicas)
        if signals.ready_replicas == 0:
            wanted = max(target, 1 if signals.requests else 0)
            return _decided(spec, wanted, "no replica is ready", history)
        if not history:
            return _decided(spec, target, f"no {name} yet", history)
        mean = sum(entry[1] for entry in history) / len(history)
        wanted = spec.bounded(math.ceil(signals.ready_replicas * mean))
        direction = (wanted > target) - (wanted < target)
        since_s = state.get("since_s", now_s) if direction and direction == state.get("direction") else now_s
        delay_s = delays.upscale_delay_s if direction > 0 else delays.downscale_delay_s
        reason = f"{name} {mean:.2f} at {signals.ready_replicas} replicas wants {wanted}"
        if direction and now_s - since_s >= delay_s:
            return _decided(spec, wanted, reason, history)
        decision = Decision(spec.bounded(target), reason + (f", for {now_s - since_s:.0f} of {delay_s:.0f} s" if direction else ""))
        return decision, {"target": target, "direction": direction, "since_s": since_s, "history": history}

    return policy


def _decided(spec: PoolSpec, wanted: int, reason: str, history: list[list[float]]) -> tuple[Decision, State]:
    target = spec.bounded(wanted)
    return Decision(target, reason), {"target": target, "history": history}
