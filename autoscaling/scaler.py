"""Scaling of all pools of a cluster: runs a policy for each pool, applies a shared GPU budget, and keeps state across restarts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec


@dataclass(frozen=True, slots=True)
class Verdict:
    """The replica count that a pool should have."""

    replicas: int
    """The wanted number of replicas."""
    reason: str
    """Why, in words for logs and operators."""
    alarm: bool = False
    """Whether the pool's policy failed. The pool then keeps its size."""


@dataclass(slots=True)
class _Pool:
    spec: PoolSpec
    """Limits and capacity."""
    state: State
    """State of the pool's policy."""
    target: int
    """The last wanted replica count."""
    scale_up_began_s: float | None = None
    """When the running scale-up was requested; None if none is running."""
    startup_s: float | None = None
    """Last measured start-up time; None before the first measurement."""


class Scaler:
    """The scaler of one cluster."""

    def __init__(self, policy: Policy, specs: Mapping[str, PoolSpec], initial: Mapping[str, int], gpu_budget: float | None = None) -> None:
        """Creates the scaler.

        `specs` holds the pools that scale, by name, and `initial` their current replica counts. `gpu_budget` is the number of GPUs that all
        pools may use together (None: no limit). Raises ValueError if the pools' minimum sizes exceed the budget.
        """
        min_gpus = sum(spec.min_replicas * spec.gpus_per_replica for spec in specs.values())
        if gpu_budget is not None and min_gpus > gpu_budget:
            raise ValueError(f"gpu_budget {gpu_budget:g} is too small; the minimum replicas of all pools need {min_gpus:g} GPUs")
        self._policy = policy
        self._gpu_budget = gpu_budget
        self._pools = {name: _Pool(spec, {}, spec.bounded(initial[name])) for name, spec in specs.items()}

    def decide(self, signals: Mapping[str, PoolSignals], now_s: float) -> dict[str, Verdict]:
        """Returns a verdict for each pool that has signals. `now_s` comes from a clock that all runs of this cluster's scaler share."""
        wanted = {}
        for name in self._pools.keys() & signals.keys():
            pool = self._pools[name]
            wanted[name] = self._run_policy(pool, self._with_startup(pool, signals[name], now_s), now_s)
        for name, verdict in self._within_budget(wanted, signals).items():
            wanted[name] = verdict
            pool = self._pools[name]
            if verdict.replicas > pool.target and pool.scale_up_began_s is None:
                pool.scale_up_began_s = now_s
            pool.target = verdict.replicas
        return wanted

    def dump(self) -> dict[str, Any]:
        """Returns the complete state as a JSON-serializable mapping."""
        return {
            name: {
                "state": dict(pool.state),
                "target": pool.target,
                "scale_up_began_s": pool.scale_up_began_s,
                "startup_s": pool.startup_s,
            }
            for name, pool in self._pools.items()
        }

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Continues from the state that `dump` returned. Unknown pools are ignored, and targets are clamped to the current bounds."""
        for name in self._pools.keys() & dumped.keys():
            pool, kept = self._pools[name], dumped[name]
            pool.state, pool.target = kept["state"], pool.spec.bounded(kept["target"])
            pool.scale_up_began_s, pool.startup_s = kept["scale_up_began_s"], kept["startup_s"]

    def _with_startup(self, pool: _Pool, signals: PoolSignals, now_s: float) -> PoolSignals:
        """Returns the signals with starting_replicas and startup_s filled in. Start-up is measured from a scale-up until all are ready."""
        starting = max(0, pool.target - signals.ready_replicas)
        if pool.scale_up_began_s is not None and not starting:
            pool.startup_s, pool.scale_up_began_s = max(1.0, now_s - pool.scale_up_began_s), None
        return PoolSignals(
            **{name: getattr(signals, name) for name in PoolSignals.__slots__}
            | {"starting_replicas": starting, "startup_s": pool.startup_s}
        )

    def _run_policy(self, pool: _Pool, signals: PoolSignals, now_s: float) -> Verdict:
        try:
            decision, state = self._policy(signals, pool.spec, pool.state, now_s)
        except Exception as error:  # noqa: BLE001 - if a policy fails in any way, the pool keeps its size and raises an alarm
            return Verdict(pool.target, f"size kept because the policy failed: {type(error).__name__}: {error}", alarm=True)
        pool.state = state
        return _verdict(decision, pool.spec)

    def _within_budget(self, wanted: Mapping[str, Verdict], signals: Mapping[str, PoolSignals]) -> dict[str, Verdict]:
        """Reduces the verdicts if the pools together want more GPUs than the budget.

        Each pool gets its minimum, then GPUs for the replicas it already has, then one replica at a time goes to the pool that has the
        smallest fraction of what it wants.
        """
        budget = self._gpu_budget
        if budget is None or sum(v.replicas * self._pools[name].spec.gpus_per_replica for name, v in wanted.items()) <= budget:
            return dict(wanted)
        given = {name: min(verdict.replicas, self._pools[name].spec.min_replicas) for name, verdict in wanted.items()}
        left = budget - sum(count * self._pools[name].spec.gpus_per_replica for name, count in given.items())
        while open_pools := [
            name
            for name, verdict in wanted.items()
            if given[name] < verdict.replicas and self._pools[name].spec.gpus_per_replica <= left + 1e-9
        ]:
            name = min(
                open_pools, key=lambda pool: (given[pool] >= self._running(pool, signals), given[pool] / wanted[pool].replicas, pool)
            )
            given[name] += 1
            left -= self._pools[name].spec.gpus_per_replica
        return {
            name: verdict
            if given[name] == verdict.replicas
            else Verdict(given[name], f"{given[name]} of {verdict.replicas} ({verdict.reason}) within {budget:g} GPUs", verdict.alarm)
            for name, verdict in wanted.items()
        }

    def _running(self, name: str, signals: Mapping[str, PoolSignals]) -> int:
        return min(self._pools[name].target, signals[name].ready_replicas)


def _verdict(decision: Decision, spec: PoolSpec) -> Verdict:
    return Verdict(spec.bounded(decision.replicas), decision.reason)
