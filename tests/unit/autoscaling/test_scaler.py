"""The scaler: verdicts from policies' decisions, as timelines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies.decision import Decision, State
from autoscaling.scaler import Scaler
from autoscaling.signals import Capacity, PoolSignals, PoolSpec

CAPACITY = Capacity(0.02, 1e-4, 4e-7, 1e-4, kv_tokens=100_000, max_requests=96)


def one_replica_per_request(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
    """Want a replica for each running request, count the calls, and fail if 13 requests run."""
    if signals.running_requests == 13:
        raise ZeroDivisionError("thirteen")
    return Decision(spec.bounded(int(signals.running_requests)), "one per request"), {"calls": state.get("calls", 0) + 1}


def scaler(gpu_budget: float | None = None, gpus: float = 1.0) -> Scaler:
    specs = {name: PoolSpec(1, 20, CAPACITY, gpus_per_replica=gpus) for name in ("generation", "embedding")}
    return Scaler(one_replica_per_request, specs, {"generation": 1, "embedding": 1}, gpu_budget)


def running(requests: float, ready: int = 1) -> PoolSignals:
    return PoolSignals(ready_replicas=ready, running_requests=requests)


def test_scaler_failing_policy_keeps_the_size_and_raises_an_alarm() -> None:
    one = scaler()
    one.decide({"generation": running(4)}, 0.0)
    verdict = one.decide({"generation": running(13)}, 1.0)["generation"]
    assert (verdict.replicas, verdict.alarm) == (4, True)
    assert "ZeroDivisionError: thirteen" in verdict.reason
    assert not one.decide({"generation": running(5)}, 2.0)["generation"].alarm


def test_scaler_restored_state_continues_where_the_other_stopped() -> None:
    one, other = scaler(), scaler()
    one.decide({"generation": running(4)}, 0.0)
    other.restore(json.loads(json.dumps(one.dump())))
    assert other.decide({"generation": running(13)}, 1.0)["generation"].replicas == 4
    other.decide({"generation": running(4)}, 2.0)
    assert other.dump()["generation"]["state"] == {"calls": 2}


def test_scaler_measures_start_up_from_the_scale_up_until_all_are_ready() -> None:
    one = scaler()
    one.decide({"generation": running(3, ready=1)}, 10.0)
    one.decide({"generation": running(3, ready=2)}, 40.0)
    assert one.dump()["generation"]["startup_s"] is None
    one.decide({"generation": running(3, ready=3)}, 55.0)
    assert one.dump()["generation"]["startup_s"] == 45.0


def test_scaler_tight_budget_prefers_the_pool_with_the_smallest_fraction_of_its_demand() -> None:
    verdicts = scaler(gpu_budget=6).decide({"generation": running(10), "embedding": running(2)}, 0.0)
    assert (verdicts["generation"].replicas, verdicts["embedding"].replicas) == (4, 2) or verdicts["generation"].replicas == 5
    assert "of 10 (one per request) within 6 GPUs" in verdicts["generation"].reason


def test_scaler_budget_below_the_minimum_sizes_is_rejected() -> None:
    with pytest.raises(ValueError, match="gpu_budget 1"):
        scaler(gpu_budget=1)


@given(
    wants=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=10),
    budget=st.floats(2, 30),
    gpus=st.sampled_from([0.5, 1.0]),
)
def test_scaler_never_exceeds_its_budget_and_gives_each_pool_its_minimum(wants: list[tuple[int, int]], budget: float, gpus: float) -> None:
    one = scaler(budget, gpus)
    for second, (generation, embedding) in enumerate(wants):
        verdicts = one.decide({"generation": running(generation), "embedding": running(embedding)}, float(second))
        counts = [verdict.replicas for verdict in verdicts.values()]
        assert sum(counts) * gpus <= budget + 1e-6
        assert min(counts) >= 1
        wanted = max(1, min(20, generation)) if generation != 13 else 1
        # If a pool wants more, the rest of the budget is too small for another replica.
        if verdicts["generation"].replicas < wanted and not verdicts["generation"].alarm:
            assert sum(counts) * gpus + gpus > budget - 1e-6
