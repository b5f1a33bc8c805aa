"""The largest callers are found in bounded memory and keep their places unless another is clearly larger."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.tenancy.heavy_hitters import HeavyHitters, Standing

CALLERS = [f"tenant-{number}" for number in range(20)]
USES = st.lists(st.tuples(st.sampled_from(CALLERS), st.integers(1, 1_000)), max_size=200)
FOREVER_S = 1e12


def test_first_callers_are_named_until_the_places_are_taken() -> None:
    largest = HeavyHitters(2, candidates=8, half_life_s=FOREVER_S)
    assert [largest.add(caller, 10, 0.0).named for caller in ("a", "b", "c", "a")] == [True, True, False, True]


def test_larger_caller_replaces_the_smallest_once_it_exceeds_the_lead() -> None:
    largest = HeavyHitters(2, candidates=8, half_life_s=FOREVER_S)
    largest.add("large", 1_000, 0.0)
    largest.add("small", 100, 0.0)
    assert largest.add("new", 125, 0.0) == Standing(named=False)
    assert largest.add("new", 1, 0.0) == Standing(named=True, displaced="small")
    assert largest.add("small", 1, 0.0) == Standing(named=False)


def test_past_use_counts_half_after_a_half_life_and_nothing_after_many() -> None:
    largest = HeavyHitters(1, candidates=4, half_life_s=10.0)
    largest.add("past", 100, 0.0)
    assert not largest.add("new", 50, 10.0).named
    assert largest.add("new", 13, 10.0).displaced == "past"
    assert largest.add("past", 1, 10_000.0).displaced == "new"


@given(USES, st.integers(1, 4), st.integers(5, 12))
def test_caller_above_its_share_is_named_and_capacity_is_never_exceeded(
    uses: list[tuple[str, int]], capacity: int, candidates: int
) -> None:
    largest = HeavyHitters(capacity, candidates=candidates, half_life_s=FOREVER_S)
    named, used = set[str](), Counter[str]()
    for caller, weight in uses:
        standing = largest.add(caller, weight, 0.0)
        used[caller] += weight
        assert standing.displaced is None or standing.displaced in named
        assert standing.named or caller not in named
        named -= {standing.displaced or ""}
        named |= {caller} if standing.named else set()
        assert len(named) <= capacity
        if used[caller] > 1.25 * used.total() / capacity:
            assert standing.named


@pytest.mark.parametrize("capacity", [0, 4, 5])
def test_invalid_capacity_is_rejected(capacity: int) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1 and below candidates \(4\)"):
        HeavyHitters(capacity, candidates=4, half_life_s=1.0)
