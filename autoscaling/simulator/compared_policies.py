"""The policies that are compared, each with the one knob that trades GPU-hours for attainment, and the range of the knob."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoscaling.policies import dynamo, knative, llm_d, ray_serve
from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.token_aware import Tuning, token_aware
from autoscaling.signals import PoolSignals, PoolSpec
from autoscaling.simulator.oracle import oracle
from autoscaling.simulator.workloads import Workload

OURS, ORACLE, STATIC = "token-aware", "oracle", "static"
"""Names of the project's default policy, the policy that knows the traffic in advance, and the fixed replica count."""


@dataclass(frozen=True, slots=True)
class ComparedPolicy:
    """A policy in the comparison."""

    name: str
    """Name on the command line and in results."""
    knob: str
    """Description of the knob."""
    most_expensive_knob: float
    """End of the knob's range that requests the most replicas."""
    cheapest_knob: float
    """End of the knob's range that requests the fewest replicas."""
    make: Callable[[float, Workload, PoolSpec, float, int], Policy]
    """Creates the policy from the knob, the workload, the pool, the start-up time in seconds and the seed."""


def static(replicas: float) -> Policy:
    """Returns a policy that always wants the same number of replicas, within the bounds of the pool."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        return Decision(spec.bounded(round(replicas)), "fixed count"), state

    return policy


def _from_knob(make: Callable[[float], Policy]) -> Callable[[float, Workload, PoolSpec, float, int], Policy]:
    return lambda knob, _workload, _spec, _startup_s, _seed: make(knob)


def _oracle(knob: float, workload: Workload, spec: PoolSpec, startup_s: float, seed: int) -> Policy:
    return oracle(workload.requests(seed), spec, startup_s, knob)


COMPARED_POLICIES: Mapping[str, ComparedPolicy] = {
    contender.name: contender
    for contender in (
        ComparedPolicy(OURS, "headroom", 1.5, 0.2, _from_knob(lambda knob: token_aware(Tuning(headroom=knob)))),
        ComparedPolicy("target-ongoing-requests", "requests per replica", 0.25, 64.0, _from_knob(ray_serve.target_ongoing_requests)),
        ComparedPolicy("target-ttft", "fraction of the TTFT target", 0.02, 0.6, _from_knob(ray_serve.target_ttft)),
        ComparedPolicy("kpa", "requests per replica", 1.0, 90.0, _from_knob(knative.kpa)),
        ComparedPolicy("saturation", "KV usage", 0.12, 0.95, _from_knob(llm_d.saturation)),
        ComparedPolicy("forecast", "headroom", 16.0, 0.9, _from_knob(dynamo.forecast)),
        ComparedPolicy(STATIC, "replicas", 48.0, 1.0, _from_knob(static)),
        ComparedPolicy(ORACLE, "headroom", 1.5, 0.5, _oracle),
    )
}
"""Every compared policy by its name."""
PEERS = tuple(name for name in COMPARED_POLICIES if name not in {OURS, ORACLE, STATIC})
"""Names of the policies of other systems."""
