"""NVIDIA Dynamo's forecast planner, reimplemented for comparison.

Source: Dynamo's planner design (throughput-based scaling). Once per adjustment interval of 180 s, the planner forecasts the request rate
and the mean input and output lengths of the next interval, and requests the replicas that serve this load at their profiled throughput
within the targets. Dynamo's predictors are constant, ARIMA, Kalman and Prophet. This implementation uses Holt's double exponential
smoothing, which is ARIMA(0,2,2), and computes the throughput from the replica's `Capacity` instead of a profile.
"""

import math

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec

_INTERVAL_S = 180.0
_LEVEL, _TREND = 0.6, 0.3


def forecast(headroom: float = 1.0, interval_s: float = _INTERVAL_S) -> Policy:
    """Returns a policy that provides replicas for `headroom` times the forecast load."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        demand = signals.urgent
        sums = [
            before + now
            for before, now in zip(
                state.get("sums", [0.0] * 4),
                (1.0, demand.arrived_requests_per_s, demand.arrived_input_tokens_per_s, demand.arrived_output_tokens_per_s),
                strict=True,
            )
        ]
        kept = {**state, "sums": sums, "next_s": state.get("next_s", now_s + interval_s)}
        target = state.get("target", max(signals.replicas, 1 if signals.requests else 0))
        if now_s < kept["next_s"]:
            return Decision(spec.bounded(target), state.get("reason", "waiting for the first interval to end")), {**kept, "target": target}
        rate, inputs, outputs = (value / sums[0] for value in sums[1:])
        level, trend = state.get("level", rate), state.get("trend", 0.0)
        smooth = _LEVEL * rate + (1 - _LEVEL) * (level + trend)
        trend = _TREND * (smooth - level) + (1 - _TREND) * trend
        ahead = max(0.0, smooth + trend)
        work_s = spec.capacity.request_work_s(inputs / rate, outputs / rate) if rate else 0.0
        share = 1 - spec.capacity.fixed_s / spec.targets.tpot_s
        wanted = math.ceil(headroom * ahead * work_s / share) if share > 0 else spec.max_replicas
        reason = f"forecast of {ahead:.2f} requests/s with {work_s:.3f} s of work each needs {wanted}"
        target = spec.bounded(max(1, wanted) if spec.min_replicas else wanted)
        return Decision(target, reason), {
            "sums": [0.0] * 4,
            "next_s": now_s + interval_s,
            "level": smooth,
            "trend": trend,
            "target": target,
            "reason": reason,
        }

    return policy
