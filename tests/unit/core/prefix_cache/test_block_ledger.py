"""The ledger of an engine's prefix cache, and the mapping of the engine's own block names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.core.prefix_cache.block_ledger import BlockChange, BlockLedger
from neox_serve.core.types import GenerationRequest, Stopping
from neox_serve.engine.cache_events import BlockNames, BlocksCleared, BlocksRemoved, BlocksStored
from neox_serve.engine.fake.cache import FakeCache

BLOCKS = st.lists(st.integers(0, 9), max_size=6)
SIZE = 4


@given(st.lists(st.tuples(BLOCKS, BLOCKS)))
def test_reported_changes_add_up_to_the_contents(changes: list[tuple[list[int], list[int]]]) -> None:
    ledger, told, there = BlockLedger(SIZE), set[int](), set[int]()

    def hear(change: BlockChange) -> None:
        assert change.stored or change.removed
        assert not told & set(change.stored)
        assert told >= set(change.removed)
        told.difference_update(change.removed)
        told.update(change.stored)

    ledger.listen(hear)
    for stored, removed in changes:
        there = (there - set(removed)) | set(stored)
        ledger.change(stored=stored, removed=removed)
        assert set(ledger.blocks()) == told == there


IDS = tuple(range(3 * SIZE))
NAMED = prompt_blocks(root("m"), IDS, SIZE)


def names() -> tuple[BlockNames, BlockLedger]:
    ledger = BlockLedger(SIZE)
    return BlockNames(ledger, "m"), ledger


def test_stored_blocks_get_the_names_that_gateways_compute() -> None:
    blocks, ledger = names()
    blocks.take([BlocksStored(["a", "b"], None, IDS[: 2 * SIZE]), BlocksStored(["c"], "b", IDS[2 * SIZE :])])
    assert set(ledger.blocks()) == set(NAMED)


def test_adapter_and_salt_of_a_prompts_beginning_name_all_its_blocks() -> None:
    blocks, ledger = names()
    blocks.take([BlocksStored(["a"], None, IDS[:SIZE], "x", "s"), BlocksStored(["b"], "a", IDS[SIZE : 2 * SIZE], "x")])
    assert set(ledger.blocks()) == set(prompt_blocks(root("m", "x", "s"), IDS[: 2 * SIZE], SIZE))


def test_block_stored_twice_stays_until_both_copies_are_removed() -> None:
    blocks, ledger = names()
    blocks.take([BlocksStored(["a"], None, IDS[:SIZE]), BlocksStored(["a"], None, IDS[:SIZE])])
    blocks.take([BlocksRemoved(["a"])])
    assert NAMED[0] in ledger
    blocks.take([BlocksRemoved(["a"])])
    assert len(ledger) == 0
    blocks.take([BlocksStored(["a"], None, IDS[:SIZE]), BlocksRemoved(["a"])])
    assert len(ledger) == 0


def test_block_stored_and_removed_in_one_step_is_not_reported() -> None:
    blocks, ledger = names()
    told: list[BlockChange] = []
    ledger.listen(told.append)
    blocks.take([BlocksStored(["a"], None, IDS[:SIZE]), BlocksRemoved(["a"])])
    assert told == []


def test_block_with_an_unknown_parent_is_ignored() -> None:
    blocks, ledger = names()
    blocks.take([BlocksStored(["c"], "lost", IDS[:SIZE]), BlocksRemoved(["never seen"])])
    assert len(ledger) == 0


@pytest.mark.parametrize("cleared", [True, False])
def test_clearing_and_forgetting_leave_nothing(*, cleared: bool) -> None:
    blocks, ledger = names()
    blocks.take([BlocksStored(["a"], None, IDS[:SIZE])])
    if cleared:
        blocks.take([BlocksCleared()])
    else:
        blocks.forget()
    blocks.take([BlocksStored(["b"], "a", IDS[SIZE : 2 * SIZE])])
    assert len(ledger) == 0


def request(ids: tuple[int, ...], salt: str | None = None) -> GenerationRequest:
    return GenerationRequest("r", ids, Stopping(1), cache_salt=salt)


def test_fake_cache_serves_full_blocks_but_never_the_last_token() -> None:
    cache = FakeCache("m", block_tokens=SIZE, capacity_blocks=10)
    assert [cache.serve(request(IDS)) for _ in range(2)] == [0, 2 * SIZE]
    assert cache.serve(request((*IDS, 99))) == 3 * SIZE
    assert set(cache.ledger.blocks()) == set(NAMED)


def test_fake_cache_shares_nothing_between_salts() -> None:
    cache = FakeCache("m", block_tokens=SIZE, capacity_blocks=10)
    assert [cache.serve(request(IDS, salt)) for salt in ("one", "other", None, "one")] == [0, 0, 0, 2 * SIZE]


def test_full_fake_cache_evicts_the_least_recently_used_prompt_from_its_end() -> None:
    cache = FakeCache("m", block_tokens=SIZE, capacity_blocks=4)
    cache.serve(request(IDS))
    cache.serve(request(tuple(range(100, 100 + 2 * SIZE))))
    assert cache.serve(request(IDS)) == 2 * SIZE
