"""llm-d's workload-variant autoscaler with its saturation guards, reimplemented for comparison.

Source: llm-d-workload-variant-autoscaler, saturation analyzer (percentage-based) and its config map. A replica is saturated at a KV usage
of 0.80 or a queue of 5 requests. The autoscaler adds one replica if the mean spare KV of the unsaturated replicas is below 0.10 or their
mean spare queue is below 3. It removes one replica only if both spares stay above these triggers when the load is redistributed over the
remaining replicas. It changes nothing while replicas are starting, and decides every 30 s. This implementation uses pool means instead of
per-replica values, which differ little under this router.
"""

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec

_QUEUE_THRESHOLD, _QUEUE_TRIGGER, _KV_TRIGGER = 5.0, 3.0, 0.1
_INTERVAL_S = 30.0


def saturation(kv_threshold: float = 0.80) -> Policy:
    """Returns a policy that keeps the KV usage below `kv_threshold` minus 0.10 and the queues short."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        target = state.get("target", signals.replicas)
        if now_s < state.get("next_s", 0.0):
            return Decision(target, state["reason"]), state
        target, reason = _analyze(signals, spec, target, kv_threshold)
        return Decision(target, reason), {"target": target, "reason": reason, "next_s": now_s + _INTERVAL_S}

    return policy


def _analyze(signals: PoolSignals, spec: PoolSpec, target: int, kv_threshold: float) -> tuple[int, str]:
    ready = signals.ready_replicas
    if signals.starting_replicas or not ready:
        return spec.bounded(max(target, 1 if signals.requests else 0)), "replicas are starting"
    queue = signals.waiting_requests / ready
    spare_kv, spare_queue = kv_threshold - signals.kv_usage_fraction, _QUEUE_THRESHOLD - queue
    reason = f"KV usage {signals.kv_usage_fraction:.2f}, {queue:.1f} waiting requests per replica"
    if spare_kv < _KV_TRIGGER or spare_queue < _QUEUE_TRIGGER:
        return spec.bounded(ready + 1), f"{reason}: saturating"
    if ready > 1:
        fewer = ready / (ready - 1)
        if kv_threshold - signals.kv_usage_fraction * fewer >= _KV_TRIGGER and _QUEUE_THRESHOLD - queue * fewer >= _QUEUE_TRIGGER:
            return spec.bounded(ready - 1), f"{reason}: fits on one replica fewer"
    return spec.bounded(ready), reason
