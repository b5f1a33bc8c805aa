"""Decides for all pools of a cluster: asks a policy for each, keeps them within a shared GPU budget, and remembers across restarts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import PoolSignals, PoolSpec


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a pool should have, and why. alarm: its policy failed, and the size is kept."""

    replicas: int
    reason: str
    alarm: bool = False


@dataclass(slots=True)
class _Pool:
    spec: PoolSpec
    state: State
    target: int
    asked_s: float | None = None
    startup_s: float | None = None


class Scaler:
    """One for a cluster. specs: of each pool that scales, by name. initial: what each begins with. gpu_budget: None for no limit."""

    def __init__(self, policy: Policy, specs: Mapping[str, PoolSpec], initial: Mapping[str, int], gpu_budget: float | None = None) -> None:
        least = sum(spec.min_replicas * spec.gpus_per_replica for spec in specs.values())
        if gpu_budget is not None and least > gpu_budget:
            raise ValueError(f"gpu_budget {gpu_budget:g}: the fewest replicas of all pools take {least:g}")
        self._policy = policy
        self._gpu_budget = gpu_budget
        self._pools = {name: _Pool(spec, {}, spec.bounded(initial[name])) for name, spec in specs.items()}

    def decide(self, signals: Mapping[str, PoolSignals], now_s: float) -> dict[str, Verdict]:
        """A verdict for each pool that there are signals of. now_s: seconds of a clock that all runs of this cluster's scaler share."""
        wanted = {}
        for name in self._pools.keys() & signals.keys():
            pool = self._pools[name]
            wanted[name] = self._ask(pool, self._with_startup(pool, signals[name], now_s), now_s)
        for name, verdict in self._within_budget(wanted, signals).items():
            wanted[name] = verdict
            pool = self._pools[name]
            if verdict.replicas > pool.target and pool.asked_s is None:
                pool.asked_s = now_s
            pool.target = verdict.replicas
        return wanted

    def dump(self) -> dict[str, Any]:
        """All that is remembered, as JSON holds it."""
        return {
            name: {"state": dict(pool.state), "target": pool.target, "asked_s": pool.asked_s, "startup_s": pool.startup_s}
            for name, pool in self._pools.items()
        }

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Goes on where another left off; pools that are not there any more are ignored, and targets kept within today's bounds."""
        for name in self._pools.keys() & dumped.keys():
            pool, kept = self._pools[name], dumped[name]
            pool.state, pool.target = kept["state"], pool.spec.bounded(kept["target"])
            pool.asked_s, pool.startup_s = kept["asked_s"], kept["startup_s"]

    def _with_startup(self, pool: _Pool, signals: PoolSignals, now_s: float) -> PoolSignals:
        """Signals with what is on its way, and how long that took the last time: from asking for more until all were ready."""
        starting = max(0, pool.target - signals.ready_replicas)
        if pool.asked_s is not None and not starting:
            pool.startup_s, pool.asked_s = max(1.0, now_s - pool.asked_s), None
        return PoolSignals(
            **{name: getattr(signals, name) for name in PoolSignals.__slots__}
            | {"starting_replicas": starting, "startup_s": pool.startup_s}
        )

    def _ask(self, pool: _Pool, signals: PoolSignals, now_s: float) -> Verdict:
        try:
            decision, state = self._policy(signals, pool.spec, pool.state, now_s)
        except Exception as error:  # noqa: BLE001 - whatever a policy trips over, the cluster keeps its size and says so
            return Verdict(pool.target, f"kept, since the policy failed: {type(error).__name__}: {error}", alarm=True)
        pool.state = state
        return _verdict(decision, pool.spec)

    def _within_budget(self, wanted: Mapping[str, Verdict], signals: Mapping[str, PoolSignals]) -> dict[str, Verdict]:
        """Where all together want more GPUs than there are: first what each has or must have, then one replica at a time to the pool that
        has the smallest part of what it wants."""
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
            name = min(open_pools, key=lambda one: (given[one] >= self._has(one, signals), given[one] / wanted[one].replicas, one))
            given[name] += 1
            left -= self._pools[name].spec.gpus_per_replica
        return {
            name: verdict
            if given[name] == verdict.replicas
            else Verdict(given[name], f"{verdict.replicas} wanted ({verdict.reason}), {given[name]} within {budget:g} GPUs", verdict.alarm)
            for name, verdict in wanted.items()
        }

    def _has(self, name: str, signals: Mapping[str, PoolSignals]) -> int:
        return min(self._pools[name].target, signals[name].ready_replicas)


def _verdict(decision: Decision, spec: PoolSpec) -> Verdict:
    return Verdict(spec.bounded(decision.replicas), decision.reason)
