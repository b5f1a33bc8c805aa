"""Names of blocks of prompts."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.prefix_cache.block_hashes import extend, prompt_blocks, reusable_blocks, root

IDS = st.lists(st.integers(0, 50_000), max_size=40)
SIZES = st.integers(1, 9)


@given(IDS, SIZES)
def test_prompt_blocks_are_a_chain_over_all_full_blocks(ids: list[int], size: int) -> None:
    parent, expected = root("m"), []
    for start in range(0, len(ids) - size + 1, size):
        parent = extend(parent, ids[start : start + size])
        expected.append(parent)
    assert prompt_blocks(root("m"), ids, size) == tuple(expected)
    assert len(expected) == len(ids) // size


@given(IDS, IDS, SIZES)
def test_prompts_share_the_blocks_of_their_common_prefix(one: list[int], other: list[int], size: int) -> None:
    same = next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ours, theirs = (prompt_blocks(root("m"), ids, size) for ids in (one, other))
    assert len(set(ours) & set(theirs)) == same // size


@given(IDS.filter(len), SIZES)
def test_reusable_blocks_exclude_the_last_token(ids: list[int], size: int) -> None:
    assert reusable_blocks(0, ids, size) == prompt_blocks(0, ids, size)[: (len(ids) - 1) // size]


def test_root_separates_models_adapters_and_salts() -> None:
    roots = {root("m"), root("n"), root("m", "a"), root("m", None, "a"), root("m", "a", "b"), root("m", "b", "a")}
    assert len(roots | {root("ma"), root("m", "ab")}) == 8
    assert root("m", None, None) == root("m", "", "")


def test_names_are_equal_in_every_process() -> None:
    code = (
        "from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root; "
        "print(prompt_blocks(root('m', 'a', 's'), range(64), 16))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == str(prompt_blocks(root("m", "a", "s"), range(64), 16))
