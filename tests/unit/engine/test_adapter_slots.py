"""The choice of the adapters that stay loaded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.engine.adapter_slots import AdapterSlots, Load


def use(slots: AdapterSlots, name: str, *in_use: str) -> Load | None:
    """Uses an adapter in the way an engine does."""
    step = slots.use(name, in_use)
    if step is not None:
        if step.evict is not None:
            slots.remove(step.evict)
        slots.put(name)
    return step


def test_least_recently_used_adapter_is_unloaded_first() -> None:
    slots = AdapterSlots(2)
    assert [use(slots, name) for name in ("a", "b", "a", "c")] == [Load(), Load(), None, Load("b")]
    assert slots.loaded == {"a", "c"}


def test_pinned_adapters_and_those_in_use_stay_loaded() -> None:
    slots = AdapterSlots(3, pinned={"a"})
    for name in "abc":
        use(slots, name)
    assert use(slots, "d", "b") == Load("c")
    with pytest.raises(ServeError) as caught:
        slots.use("e", ("b", "d"))
    assert caught.value.reason is Reason.OVERLOADED
    assert slots.loaded == {"a", "b", "d"}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"), max_size=2)), max_size=40), st.integers(1, 4))
def test_capacity_is_never_exceeded_and_adapters_in_use_are_never_unloaded(steps: list[tuple[str, set[str]]], capacity: int) -> None:
    slots = AdapterSlots(capacity, pinned={"a"})
    for name, running in steps:
        before, in_use = slots.loaded, running & slots.loaded
        try:
            use(slots, name, *in_use)
        except ServeError:
            assert len(before) == capacity
            assert before <= in_use | {"a"}
            continue
        assert name in slots.loaded
        assert len(slots.loaded) <= capacity
        assert (before - slots.loaded) <= before - in_use - {"a"}
