"""The policies that are compared, each with the one knob that trades GPU-hours for attainment and the span in which that is tried."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoscaling.policies import dynamo, knative, llm_d, ray_serve
from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.token_aware import Tuning, token_aware
from autoscaling.signals import PoolSignals, PoolSpec
from autoscaling.simulator.oracle import oracle
from autoscaling.simulator.workloads import Workload

OURS, ORACLE, STATIC = "token-aware", "oracle", "static"


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy by name. knob: what its number is. dear, cheap: the ends of its span, dear that which asks for the most replicas."""

    name: str
    knob: str
    dear: float
    cheap: float
    make: Callable[[float, Workload, PoolSpec, float, int], Policy]


def static(replicas: float) -> Policy:
    """Always as many, within the bounds of the pool."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        return Decision(spec.bounded(round(replicas)), "always as many"), state

    return policy


def _plain(make: Callable[[float], Policy]) -> Callable[[float, Workload, PoolSpec, float, int], Policy]:
    return lambda knob, _workload, _spec, _startup_s, _seed: make(knob)


def _knowing(knob: float, workload: Workload, spec: PoolSpec, startup_s: float, seed: int) -> Policy:
    return oracle(workload.requests(seed), spec, startup_s, knob)


CONTENDERS: Mapping[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(OURS, "headroom", 1.5, 0.2, _plain(lambda knob: token_aware(Tuning(headroom=knob)))),
        Contender("target-ongoing-requests", "requests a replica", 0.25, 64.0, _plain(ray_serve.target_ongoing_requests)),
        Contender("target-ttft", "fraction of the TTFT target", 0.02, 0.6, _plain(ray_serve.target_ttft)),
        Contender("kpa", "requests a replica", 1.0, 90.0, _plain(knative.kpa)),
        Contender("saturation", "KV usage", 0.12, 0.95, _plain(llm_d.saturation)),
        Contender("forecast", "headroom", 16.0, 0.9, _plain(dynamo.forecast)),
        Contender(STATIC, "replicas", 48.0, 1.0, _plain(static)),
        Contender(ORACLE, "headroom", 1.5, 0.5, _knowing),
    )
}
PEERS = tuple(name for name in CONTENDERS if name not in {OURS, ORACLE, STATIC})
