"""Recorded demand: how it is spread over time, replayed, and turned into replica counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.policies.demand_replay import add_demand, reactive_replicas, replay, replicas_needed
from tests.unit.autoscaling.policies.timelines import CAPACITY

DEMAND = st.lists(st.floats(0, 50), min_size=1, max_size=200)


def missed_fraction(demand: list[float], base: float, reactive: list[float] | None = None) -> float:
    return replay(demand, base, reactive or [0.0] * len(demand), 1.0, 2.0).missed_fraction


def test_add_demand_long_answer_is_spread_without_loss() -> None:
    bins: list[float] = []
    add_demand(bins, 3, 2.0, 4.0, (1000.0, 200.0), CAPACITY, 0.1)
    assert sum(bins) * 2.0 == pytest.approx(4 * CAPACITY.replicas_of_request(1000, 200, 0.1))
    assert bins[:3] == [0.0, 0.0, 0.0]
    assert len(bins) == 3 + 10
    assert bins[3] > bins[4] == pytest.approx(bins[-1])


def test_replicas_needed_burst_shorter_than_the_patience_needs_no_more() -> None:
    assert replicas_needed([1.0] * 20 + [1.9] + [0.5] * 20, bin_s=1.0, patience_s=1.0, miss_fraction=0.0, max_replicas=10) == 1


def test_replicas_needed_rare_burst_is_missed_as_far_as_allowed() -> None:
    demand = [1.0] * 1000 + [9.0]
    assert replicas_needed(demand, bin_s=1.0, patience_s=1.0, miss_fraction=0.05, max_replicas=20) < replicas_needed(
        demand, bin_s=1.0, patience_s=1.0, miss_fraction=0.0, max_replicas=20
    )


@given(DEMAND, st.integers(1, 60))
def test_replay_more_replicas_never_miss_more(demand: list[float], replicas: int) -> None:
    assert missed_fraction(demand, replicas + 1) <= missed_fraction(demand, replicas) + 1e-9


@given(DEMAND, st.floats(0, 0.2), st.integers(1, 5), st.integers(0, 20))
def test_replicas_needed_with_reactive_replicas_keeps_the_miss_fraction(
    demand: list[float], miss_fraction: float, delay: int, hold: int
) -> None:
    reactive = reactive_replicas(demand, window=3, delay=delay, hold=hold, ahead_windows=1.0)
    found = replicas_needed(demand, bin_s=1.0, patience_s=2.0, miss_fraction=miss_fraction, max_replicas=100, reactive=reactive)
    assert found == 0 or missed_fraction(demand, found, reactive) <= miss_fraction + 1e-9


@given(DEMAND, st.floats(0, 0.2), st.integers(1, 5), st.integers(0, 20))
def test_replicas_needed_costs_no_more_than_any_other_sufficient_candidate(
    demand: list[float], miss_fraction: float, delay: int, hold: int
) -> None:
    reactive = reactive_replicas(demand, window=3, delay=delay, hold=hold, ahead_windows=1.0)
    found = replicas_needed(demand, bin_s=1.0, patience_s=2.0, miss_fraction=miss_fraction, max_replicas=100, reactive=reactive)
    without = replicas_needed(demand, bin_s=1.0, patience_s=2.0, miss_fraction=miss_fraction, max_replicas=100)
    assert found <= without
    if found:
        assert replay(demand, found, reactive, 1.0, 2.0).replicas <= replay(demand, without, reactive, 1.0, 2.0).replicas + 1e-9


def test_replicas_needed_timely_reaction_replaces_base_replicas_for_bursts() -> None:
    wave = ([2.0] * 100 + [2.0 + each / 10 for each in range(80)] + [10.0] * 60) * 5
    quick, slow = (reactive_replicas(wave, window=3, delay=delay, hold=30, ahead_windows=1.0) for delay in (2, 100))
    with_quick, with_slow = (
        replicas_needed(wave, bin_s=1.0, patience_s=2.0, miss_fraction=0.01, max_replicas=50, reactive=reactive)
        for reactive in (quick, slow)
    )
    assert with_quick < 6 < with_slow


def test_reactive_replicas_burst_is_provided_after_the_delay_and_held() -> None:
    ready = reactive_replicas([0.0] * 20 + [4.0] * 5 + [0.0] * 40, window=2, delay=6, hold=10, ahead_windows=0.0)
    assert ready[26] == 0.0
    assert ready[28] == 4.0
    assert max(ready[50:]) == 0.0
