"""Knative's pod autoscaler (KPA), as a peer.

Source: knative.dev/serving, pkg/autoscaler/scaling/autoscaler.go and the config-autoscaler defaults: concurrency averaged over a stable
window of 60 s, and over a panic window of a tenth of it; panic once the latter wants twice what is ready, in which nothing scales down and
which ends a stable window after its last cause; at most 1,000 times as many at once, and at least half.
"""

import math

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec

_STABLE_S = 60.0
_PANIC_S = 6.0
_PANIC_THRESHOLD = 2.0
_UTILIZATION = 0.7
_MAX_UP, _MAX_DOWN = 1000.0, 2.0


def kpa(target_concurrency: float) -> Policy:
    """As many replicas as carry the concurrent requests at 0.7 of `target_concurrency` each."""
    target = _UTILIZATION * target_concurrency

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        history = [entry for entry in state.get("history", []) if entry[0] > now_s - _STABLE_S] + [[now_s, signals.requests]]
        ready = max(1, signals.ready_replicas)
        stable, panic = (_wanted(history, now_s - span_s, target, ready) for span_s in (_STABLE_S, _PANIC_S))
        since_s, most = state.get("panic_since_s"), state.get("panic_most", 0)
        if panic / ready >= _PANIC_THRESHOLD:
            since_s = now_s
        elif since_s is not None and now_s - since_s > _STABLE_S:
            since_s, most = None, 0
        if since_s is None:
            wanted, why = stable, f"stable window wants {stable}"
        else:
            most = wanted = max(most, panic, ready)
            why = f"panic: {panic} wanted over {_PANIC_S:.0f} s, {ready} ready"
        return Decision(spec.bounded(wanted), why), {"history": history, "panic_since_s": since_s, "panic_most": most}

    return policy


def _wanted(history: list[list[float]], since_s: float, target: float, ready: int) -> int:
    seen = [entry[1] for entry in history if entry[0] > since_s]
    wanted = math.ceil(sum(seen) / len(seen) / target)
    return int(min(max(wanted, math.floor(ready / _MAX_DOWN)), math.ceil(ready * _MAX_UP)))
