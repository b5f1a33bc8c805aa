"""The scaling loop, which runs in the router's process.

In every interval it turns the router's demand into signals, lets the scaler decide, and writes the verdicts to Ray's key-value store, where
Serve's controller reads them. The scaler's memory is kept there too, so that it survives a restart of the router.
"""

import json
from collections.abc import Callable, Mapping

import structlog
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from autoscaling.attainment import Attained, Attainment
from autoscaling.policies import POLICIES
from autoscaling.policies.decision import Policy
from autoscaling.policies.ray_serve import Delays, target_ongoing_requests
from autoscaling.policies.token_aware import Tuning, token_aware
from autoscaling.ray_adapter import VERDICT_NAMESPACE, serialize_verdict
from autoscaling.scaler import Scaler, Verdict
from autoscaling.signals import BULK, Capacity, ClassDemand, PoolSignals, PoolSpec, Targets
from neox_serve.core.cluster import ScalingView
from neox_serve.core.scheduling.pool_demand import PoolDemand
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import Pool
from neox_serve.link.streams import repeat
from neox_serve.router.server import RouterServer
from neox_serve.settings.engines import ReplicaSettings
from neox_serve.settings.scaling import ScalingSettings
from neox_serve.settings.slices import RouterProcessSettings, ScaledPoolSettings

_log = structlog.get_logger(__name__)

_MEMORY_KEY = b"memory"
_SAVE_INTERVAL_ROUNDS = 5
"""The scaler's memory is saved in every so many rounds, and whenever a verdict changes."""


def scaled_pools(settings: RouterProcessSettings) -> dict[Pool, ReplicaSettings]:
    """Returns the pools that are scaled: those whose minimum and maximum number of replicas differ."""
    replicas = {pool: section.replicas for pool, section in settings.pools.items()}
    return {pool: bounds for pool, bounds in replicas.items() if bounds.min != bounds.max}


def waking_lanes(settings: RouterProcessSettings) -> frozenset[tuple[Pool, str]]:
    """Returns pool and model of the requests that wait while there is no replica, because the pool will be scaled up from zero."""
    return frozenset((pool, settings.model_name) for pool, one in scaled_pools(settings).items() if one.min == 0)


def tuning_of(scaling: ScalingSettings) -> Tuning:
    """Returns the tuning of the token-aware policy."""
    return Tuning(
        headroom=scaling.headroom,
        hold_startups=scaling.scale_down_hold_startups,
        hold_beyond_s=scaling.scale_down_hold_s,
        history_s=scaling.demand_history_s,
        level_s=scaling.demand_window_s,
        idle_s=scaling.scale_to_zero_after_s,
    )


def policy_of(scaling: ScalingSettings) -> Policy:
    """Returns the configured policy."""
    if scaling.policy == "token-aware":
        return token_aware(tuning_of(scaling))
    if scaling.policy == "target-ongoing-requests":
        delays = Delays(
            upscale_delay_s=scaling.upscale_delay_s, downscale_delay_s=scaling.downscale_delay_s, look_back_s=scaling.look_back_period_s
        )
        return target_ongoing_requests(scaling.target_ongoing_requests, delays)
    return POLICIES[scaling.policy]


def scaler_of(settings: RouterProcessSettings) -> Scaler:
    """Returns the cluster's scaler. Raises ValueError if the GPU budget is too small for the minimum number of replicas."""
    pools = scaled_pools(settings)
    specs = {pool.value: _spec(settings.scaling, one, _gpus(settings.pools[pool])) for pool, one in pools.items()}
    return Scaler(policy_of(settings.scaling), specs, {pool.value: one.initial for pool, one in pools.items()}, settings.scaling.gpu_budget)


def _gpus(section: ScaledPoolSettings) -> float:
    return section.replicas.gpus_per_worker * section.workers_per_replica


def _spec(scaling: ScalingSettings, replicas: ReplicaSettings, gpus: float) -> PoolSpec:
    capacity = Capacity(
        scaling.step_base_s,
        scaling.step_per_sequence_s,
        scaling.step_per_resident_token_s,
        scaling.step_per_prompt_token_s,
        scaling.kv_cache_tokens,
        replicas.max_requests,
    )
    return PoolSpec(replicas.min, replicas.max, capacity, _targets(scaling), scaling.assumed_startup_s, gpus)


def _targets(scaling: ScalingSettings) -> Targets:
    return Targets(scaling.target_ttft_s, scaling.target_tpot_s, scaling.target_attainment_fraction)


def signals_of(demand: PoolDemand, attained: Attained) -> PoolSignals:
    """Returns the signals that a policy gets about a pool."""
    return PoolSignals(
        ready_replicas=demand.ready_replicas,
        draining_replicas=demand.draining_replicas,
        by_class={
            BULK if priority is PriorityClass.BULK else priority.name.lower(): ClassDemand(
                counts.waiting_requests,
                counts.waiting_tokens,
                counts.requests / demand.seconds,
                counts.input_tokens / demand.seconds,
                counts.output_tokens / demand.seconds,
            )
            for priority, counts in demand.by_class.items()
        },
        running_requests=demand.running_requests,
        running_tokens=demand.running_tokens,
        prefill_backlog_tokens=demand.prefill_backlog_tokens,
        kv_usage_fraction=demand.kv_usage_fraction,
        **attained._asdict(),
    )


class ScalingLoop:
    """Scales the pools of a RouterServer.

    `wall_clock` returns seconds since the epoch, because the scaler's memory outlives the router's process.
    """

    def __init__(
        self, scaler: Scaler, pools: tuple[Pool, ...], targets: Targets, server: RouterServer, wall_clock: Callable[[], float]
    ) -> None:
        self._scaler = scaler
        self._attainments = {pool: Attainment(targets) for pool in pools}
        self._server = server
        self._wall_clock = wall_clock
        self._verdicts: dict[str, Verdict] = {}
        self._rounds = 0

    async def run(self, interval_s: float) -> None:
        """Decides in every interval, forever. It first restores the memory that an earlier router saved."""
        if stored := _internal_kv_get(_MEMORY_KEY, namespace=VERDICT_NAMESPACE):
            self._scaler.restore(json.loads(stored))
        await repeat(self._decide, interval_s)

    async def _decide(self) -> None:
        now_s = self._wall_clock()
        demands = self._server.demand()
        verdicts = self._scaler.decide({pool.value: self._signals(pool, demands[pool], now_s) for pool in self._attainments}, now_s)
        changed = self._publish(verdicts)
        for name, verdict in verdicts.items():
            _internal_kv_put(name.encode(), serialize_verdict(verdict.replicas, verdict.reason, now_s), namespace=VERDICT_NAMESPACE)
        self._rounds += 1
        if changed or self._rounds % _SAVE_INTERVAL_ROUNDS == 0:
            _internal_kv_put(_MEMORY_KEY, json.dumps(self._scaler.dump()).encode(), namespace=VERDICT_NAMESPACE)

    def _signals(self, pool: Pool, demand: PoolDemand, now_s: float) -> PoolSignals:
        ttfts_s = [timings.first_token_s for timings in demand.timings]
        tpots_s = [timings.per_token_s for timings in demand.timings if timings.per_token_s is not None]
        return signals_of(demand, self._attainments[pool].report(ttfts_s, tpots_s, now_s))

    def _publish(self, verdicts: Mapping[str, Verdict]) -> bool:
        """Logs changed verdicts and passes all of them to the router, which shows them. Returns whether any changed."""
        changed = False
        for name, verdict in verdicts.items():
            before = self._verdicts.get(name)
            if before is None or (before.replicas, before.alarm) != (verdict.replicas, verdict.alarm):
                changed = True
                log = _log.error if verdict.alarm else _log.info
                log("replicas_wanted", pool=name, replicas=verdict.replicas, reason=verdict.reason)
        self._verdicts = dict(verdicts)
        self._server.show_scaling(tuple(ScalingView(Pool(name), one.replicas, one.reason, one.alarm) for name, one in verdicts.items()))
        return changed


def loop_of(settings: RouterProcessSettings, server: RouterServer, wall_clock: Callable[[], float]) -> ScalingLoop | None:
    """Returns the loop; None if no pool is scaled."""
    pools = tuple(scaled_pools(settings))
    return ScalingLoop(scaler_of(settings), pools, _targets(settings.scaling), server, wall_clock) if pools else None
