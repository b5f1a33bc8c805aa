"""Knative's pod autoscaler (KPA), reimplemented for comparison.

Source: knative.dev/serving, pkg/autoscaler/scaling/autoscaler.go and the config-autoscaler defaults. Concurrency is averaged over a stable
window of 60 s and a panic window of a tenth of that. Panic mode starts when the panic window wants at least twice the ready replicas. In
panic mode the pool never scales down, and the mode ends one stable window after its last trigger. A single decision multiplies the replica
count by at most 1,000 and divides it by at most 2.
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
    """Returns a policy that keeps the concurrent requests of each replica at 0.7 times `target_concurrency`."""
    target = _UTILIZATION * target_concurrency

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        history = [entry for entry in state.get("history", []) if entry[0] > now_s - _STABLE_S] + [[now_s, signals.requests]]
        ready = max(1, signals.ready_replicas)
        stable, panic = (_wanted(history, now_s - span_s, target, ready) for span_s in (_STABLE_S, _PANIC_S))
        since_s, panic_max = state.get("panic_since_s"), state.get("panic_max", 0)
        if panic / ready >= _PANIC_THRESHOLD:
            since_s = now_s
        elif since_s is not None and now_s - since_s > _STABLE_S:
            since_s, panic_max = None, 0
        if since_s is None:
            wanted, reason = stable, f"stable window needs {stable}"
        else:
            panic_max = wanted = max(panic_max, panic, ready)
            reason = f"panic: window of {_PANIC_S:.0f} s needs {panic}, {ready} ready"
        return Decision(spec.bounded(wanted), reason), {"history": history, "panic_since_s": since_s, "panic_max": panic_max}

    return policy


def _wanted(history: list[list[float]], since_s: float, target: float, ready: int) -> int:
    seen = [entry[1] for entry in history if entry[0] > since_s]
    wanted = math.ceil(sum(seen) / len(seen) / target)
    return int(min(max(wanted, math.floor(ready / _MAX_DOWN)), math.ceil(ready * _MAX_UP)))
