"""The index of which replica holds which block."""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from neox_serve.core.prefix_cache.block_index import BlockIndex, BlockNews
from tests.bench.router import block_bytes

NAMES = st.sampled_from(["a", "b", "c"])
BLOCKS = st.lists(st.integers(0, 7), max_size=6)


def index_of(**blocks: list[int]) -> BlockIndex:
    index = BlockIndex()
    for replica_id, stored in blocks.items():
        assert index.take(replica_id, BlockNews(0, stored, restarts=True))
    return index


def test_look_up_counts_blocks_up_to_the_first_that_is_missing() -> None:
    index = index_of(a=[1, 2, 3], b=[1, 3, 4], c=[2, 3])
    holdings = index.look_up([1, 2, 3, 4])
    assert [holdings.blocks(name) for name in "abcd"] == [3, 1, 0, 0]
    assert holdings.longest(5, Random(0)) == ["a", "b"]


def test_gap_is_reported_once_and_changes_are_ignored_until_a_restart() -> None:
    index = index_of(a=[1])
    assert index.take("a", BlockNews(2, [2])) is False
    assert index.take("a", BlockNews(3, [3])) is True
    assert (index.needs_restart("a"), index.look_up([1]).blocks("a"), index.blocks_on("a")) == (True, 0, 0)
    assert index.take("a", BlockNews(9, [4], restarts=True))
    assert index.take("a", BlockNews(10, [5], removed=[4]))
    assert (index.needs_restart("a"), index.look_up([5]).blocks("a"), index.look_up([4]).blocks("a")) == (False, 1, 0)


def test_first_message_without_restart_is_a_gap() -> None:
    index = BlockIndex()
    assert index.take("a", BlockNews(1, [1])) is False
    assert index.needs_restart("a")


def test_repeated_number_is_a_gap() -> None:
    index = index_of(a=[])
    assert index.take("a", BlockNews(0, [1])) is False


def test_restarted_replica_with_a_new_id_starts_empty() -> None:
    index = index_of(old=[1, 2])
    index.forget("old")
    assert index.take("new", BlockNews(0, [1], restarts=True))
    assert (index.look_up([1, 2]).blocks("new"), index.look_up([1, 2]).blocks("old"), len(index)) == (1, 0, 1)


def test_forgotten_blocks_do_not_return_with_a_reused_slot() -> None:
    index = index_of(a=list(range(100)))
    for number in range(20):
        index.forget("a" if number == 0 else f"r{number - 1}")
        index.sweep(max_blocks=7)
        index.take(f"r{number}", BlockNews(0, [200 + number], restarts=True))
        assert index.look_up([0]).longest(9, Random(0)) == []
        assert index.look_up([200 + number]).longest(9, Random(0)) == [f"r{number}"]


def test_longest_among_many_equals_draws_each_of_them_over_time() -> None:
    index = index_of(**{f"r{number}": [1] for number in range(40)}, best=[1, 2])
    drawn = [index.look_up([1, 2]).longest(4, Random(seed)) for seed in range(400)]
    assert all(len(set(each)) == 4 and each[0] == "best" for each in drawn)
    assert len({name for each in drawn for name in each}) == 41


@given(st.dictionaries(NAMES, BLOCKS), BLOCKS, st.integers(1, 4), st.integers())
def test_longest_returns_the_best_holders_in_order(held: dict[str, list[int]], prompt: list[int], most: int, seed: int) -> None:
    holdings = index_of(**held).look_up(prompt)
    expected = {name: prefix(blocks, prompt) for name, blocks in held.items() if prefix(blocks, prompt)}
    found = holdings.longest(most, Random(seed))
    assert [expected[name] for name in found] == sorted(expected.values(), reverse=True)[:most]
    assert {name: holdings.blocks(name) for name in expected} == expected


def prefix(held: list[int] | set[int], prompt: list[int]) -> int:
    return next((number for number, block in enumerate(prompt) if block not in held), len(prompt))


@dataclass(slots=True)
class Known:
    """A replica in the reference model. believed: whether no message was lost."""

    number: int
    believed: bool = True
    blocks: set[int] = field(default_factory=set)


class Accounts(RuleBasedStateMachine):
    """Compares the index with a reference model of plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.index = BlockIndex()
        self.known: dict[str, Known] = {}

    @rule(name=NAMES, stored=BLOCKS)
    def restarts(self, name: str, stored: list[int]) -> None:
        number = self.known[name].number + 5 if name in self.known else 0
        self.known[name] = Known(number, blocks=set(stored))
        assert self.index.take(name, BlockNews(number, stored, restarts=True))

    @rule(name=NAMES, stored=BLOCKS, removed=BLOCKS, skipped=st.sampled_from([0, 0, 0, 1]))
    def goes_on(self, name: str, stored: list[int], removed: list[int], skipped: int) -> None:
        if name not in self.known:
            return
        known = self.known[name]
        known.number += 1 + skipped
        was_believed, known.believed = known.believed, known.believed and not skipped
        known.blocks = (known.blocks - set(removed)) | set(stored) if known.believed else set()
        assert self.index.take(name, BlockNews(known.number, stored, removed)) is not (was_believed and not known.believed)

    @rule(name=NAMES)
    def leaves(self, name: str) -> None:
        self.known.pop(name, None)
        self.index.forget(name)

    @rule(most=st.integers(1, 5))
    def sweeps(self, most: int) -> None:
        self.index.sweep(most)

    @invariant()
    def knows_what_the_reference_knows(self) -> None:
        assert len(self.index) == sum(len(known.blocks) for known in self.known.values())
        for prompt in ([0, 1, 2, 3], [3, 2, 7], [5]):
            holdings = self.index.look_up(prompt)
            for name in "abc":
                known = self.known.get(name)
                assert holdings.blocks(name) == (prefix(known.blocks, prompt) if known else 0)
                assert self.index.needs_restart(name) is (known is not None and not known.believed)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("replicas", [8, 1000])
def test_block_takes_less_than_190_bytes_at_any_table_size(replicas: int) -> None:
    assert block_bytes.measure(200_000, replicas) < 190
