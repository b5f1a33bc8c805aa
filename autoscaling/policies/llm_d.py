"""llm-d's workload-variant autoscaler with its saturation guards, as a peer.

Source: llm-d-workload-variant-autoscaler, saturation analyzer (percentage-based) and its config map: a replica is saturated at KV usage
0.80 or a queue of 5; one more replica where the mean spare KV of those that are not is below 0.10 or the mean spare queue below 3; one
less only where, the load redistributed over one replica less, both spares stay above their triggers; nothing while replicas are on their
way. It looks once in 30 s. The means stand in for each replica's own figures, which differ little under this router.
"""

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec

_QUEUE_THRESHOLD, _QUEUE_TRIGGER, _KV_TRIGGER = 5.0, 3.0, 0.1
_INTERVAL_S = 30.0


def saturation(kv_threshold: float = 0.80) -> Policy:
    """Keeps KV usage below `kv_threshold` less the trigger, and queues short."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        target = state.get("target", signals.replicas)
        if now_s < state.get("next_s", 0.0):
            return Decision(target, state["reason"]), state
        target, reason = _look(signals, spec, target, kv_threshold)
        return Decision(target, reason), {"target": target, "reason": reason, "next_s": now_s + _INTERVAL_S}

    return policy


def _look(signals: PoolSignals, spec: PoolSpec, target: int, kv_threshold: float) -> tuple[int, str]:
    ready = signals.ready_replicas
    if signals.starting_replicas or not ready:
        return spec.bounded(max(target, 1 if signals.requests else 0)), "replicas are on their way"
    queue = signals.waiting_requests / ready
    spare_kv, spare_queue = kv_threshold - signals.kv_usage_fraction, _QUEUE_THRESHOLD - queue
    reason = f"KV usage {signals.kv_usage_fraction:.2f}, {queue:.1f} waiting a replica"
    if spare_kv < _KV_TRIGGER or spare_queue < _QUEUE_TRIGGER:
        return spec.bounded(ready + 1), f"{reason}: saturating"
    if ready > 1:
        fewer = ready / (ready - 1)
        if kv_threshold - signals.kv_usage_fraction * fewer >= _KV_TRIGGER and _QUEUE_THRESHOLD - queue * fewer >= _QUEUE_TRIGGER:
            return spec.bounded(ready - 1), f"{reason}: fits on one replica less"
    return spec.bounded(ready), reason
