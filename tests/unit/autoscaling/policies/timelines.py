"""Helpers for tests of policies as timelines: pool signals, second by second."""

from collections.abc import Callable

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.signals import Capacity, ClassDemand, PoolSignals, PoolSpec

CAPACITY = Capacity(
    fixed_s=0.02, per_sequence_s=1e-4, per_resident_token_s=4e-7, per_prompt_token_s=1e-4, kv_tokens=100_000, max_requests=96
)
SPEC = PoolSpec(min_replicas=1, max_replicas=40, capacity=CAPACITY, startup_s=60.0)
SPEC_WITH_ZERO = PoolSpec(min_replicas=0, max_replicas=40, capacity=CAPACITY, startup_s=60.0)
"""A pool that may scale to zero."""
REPLICAS_PER_REQUEST_PER_S = CAPACITY.replicas_of_request(1000, 200, SPEC.targets.tpot_s)
"""Replicas that one request per second of `demand` keeps busy."""


def demand(rate: float, waiting: float = 0.0) -> ClassDemand:
    """Returns the demand of `rate` requests per second with 1,000 prompt and 200 output tokens each."""
    return ClassDemand(waiting, waiting * 1200, rate, rate * 1000, rate * 200)


def signals(rate: float = 0.0, ready: int = 1, running: float = 0.0, waiting: float = 0.0, **others: float) -> PoolSignals:
    """Returns the signals of a pool with one priority class."""
    return PoolSignals(
        ready_replicas=ready,
        by_class={"default": demand(rate, waiting)},
        running_requests=running,
        running_tokens=running * 1100,
        **others,  # type: ignore[arg-type]
    )


def timeline(policy: Policy, signals_at: Callable[[int, int], PoolSignals], seconds: int, spec: PoolSpec = SPEC) -> list[Decision]:
    """Returns one decision per second. `signals_at` maps the second and the previously decided count to the signals."""
    state: State = {}
    found, count = list[Decision](), signals_at(0, 1).replicas
    for second in range(seconds):
        decision, state = policy(signals_at(second, count), spec, state, float(second))
        found.append(decision)
        count = decision.replicas
    return found
