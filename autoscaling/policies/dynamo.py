"""A forecast planner after NVIDIA Dynamo's, as a peer.

Source: Dynamo's planner design (throughput-based scaling): once in an adjustment interval of 180 s, the request rate and the mean input
and output lengths of the next interval are forecast from those before, and as many replicas are wanted as serve that at the throughput
that they were profiled to reach within the targets. Its predictors are constant, ARIMA, Kalman and Prophet; here a line through the last
intervals (Holt's double exponential smoothing), which is ARIMA(0,2,2). Profiles stand for the replica's capacity.
"""

import math

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec

_INTERVAL_S = 180.0
_LEVEL, _TREND = 0.6, 0.3


def forecast(headroom: float = 1.0, interval_s: float = _INTERVAL_S) -> Policy:
    """As many replicas as serve the forecast load times `headroom` within the targets."""

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
            return Decision(spec.bounded(target), state.get("reason", "the first interval")), {**kept, "target": target}
        rate, inputs, outputs = (value / sums[0] for value in sums[1:])
        level, trend = state.get("level", rate), state.get("trend", 0.0)
        smooth = _LEVEL * rate + (1 - _LEVEL) * (level + trend)
        trend = _TREND * (smooth - level) + (1 - _TREND) * trend
        ahead = max(0.0, smooth + trend)
        work_s = spec.capacity.request_work_s(inputs / rate, outputs / rate) if rate else 0.0
        share = 1 - spec.capacity.fixed_s / spec.targets.tpot_s
        wanted = math.ceil(headroom * ahead * work_s / share) if share > 0 else spec.max_replicas
        reason = f"{ahead:.2f} requests/s of {work_s:.3f} s forecast want {wanted}"
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
