"""Properties that every policy has."""

import json

from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies import POLICIES
from autoscaling.policies.decision import State
from autoscaling.signals import PoolSignals, PoolSpec
from tests.unit.autoscaling.policies.timelines import CAPACITY, SPEC, SPEC_WITH_ZERO, signals


@given(
    name=st.sampled_from(sorted(POLICIES)),
    history=st.lists(
        st.builds(
            signals,
            rate=st.floats(0, 500),
            ready=st.integers(0, 60),
            running=st.floats(0, 5000),
            waiting=st.floats(0, 5000),
            kv_usage_fraction=st.floats(0, 1),
            ttft_mean_s=st.none() | st.floats(0, 60),
        ),
        min_size=1,
        max_size=30,
    ),
    spec=st.sampled_from([SPEC, SPEC_WITH_ZERO, PoolSpec(2, 3, CAPACITY)]),
)
def test_any_policy_stays_within_its_bounds_and_continues_from_a_json_state(name: str, history: list[PoolSignals], spec: PoolSpec) -> None:
    policy = POLICIES[name]
    state: State = {}
    restored_state: State = {}
    for second, seen in enumerate(history):
        decision, state = policy(seen, spec, state, float(second))
        again, restored_state = policy(seen, spec, json.loads(json.dumps(restored_state)), float(second))
        assert spec.min_replicas <= decision.replicas <= spec.max_replicas
        assert decision.reason
        assert again == decision
