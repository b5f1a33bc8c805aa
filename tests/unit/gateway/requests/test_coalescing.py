"""When the tokens of a coalesced stream are released, as timelines of deltas in seconds."""

import math
from collections import defaultdict
from itertools import chain, count, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.types import Delta, Finish, FinishReason, PromptFacts, SequenceDelta
from neox_serve.gateway.requests.coalescing import ChunkPolicy, Coalescer

LENGTH = Finish(FinishReason.LENGTH)


def news(*indices: int, tokens: int = 1, finish: bool = False, end: bool = False) -> Delta:
    """Returns a delta with tokens for each of these completions."""
    sequences = tuple(SequenceDelta(index, "x" * tokens, (7,) * tokens, finish=LENGTH if finish else None) for index in indices)
    return Delta("k", sequences, end=end)


def ids_by_completion(deltas: list[Delta]) -> dict[int, list[int]]:
    """Returns the released token ids by completion."""
    ids: dict[int, list[int]] = defaultdict(list)
    for delta in deltas:
        for sequence in delta.sequences:
            ids[sequence.index] += sequence.token_ids
    return {index: its_ids for index, its_ids in ids.items() if its_ids}


def left(deltas: list[Delta]) -> dict[int, int]:
    """Returns the number of released tokens by completion."""
    return {index: len(ids) for index, ids in ids_by_completion(deltas).items()}


def step(coalescer: Coalescer, now_s: float, *deltas: Delta) -> dict[int, int]:
    """Adds deltas and returns what is released at this second."""
    coalescer.take(deltas)
    return left(coalescer.release(now_s))


@pytest.mark.parametrize(
    ("policy", "delays_chunks"),
    [(ChunkPolicy(), False), (ChunkPolicy(0.0, 1), False), (ChunkPolicy(0.1), True), (ChunkPolicy(min_tokens=2), True)],
)
def test_default_policy_holds_nothing_back(policy: ChunkPolicy, delays_chunks: bool) -> None:
    assert policy.delays_chunks is delays_chunks


def test_first_token_is_released_at_once_and_the_next_after_the_interval() -> None:
    coalescer = Coalescer(ChunkPolicy(1.0))
    assert step(coalescer, 5.0, news(0)) == {0: 1}
    assert step(coalescer, 5.4, news(0)) == {}
    assert step(coalescer, 5.8, news(0)) == {}
    assert coalescer.due_at_s == 6.0
    assert step(coalescer, 6.0) == {0: 2}
    assert coalescer.due_at_s == math.inf


def test_token_after_a_long_silence_is_released_at_once() -> None:
    coalescer = Coalescer(ChunkPolicy(1.0))
    step(coalescer, 0.0, news(0))
    assert step(coalescer, 7.0, news(0)) == {0: 1}
    assert step(coalescer, 7.5, news(0)) == {}
    assert coalescer.due_at_s == 8.0


def test_chunk_waits_for_its_tokens_without_time_limit() -> None:
    coalescer = Coalescer(ChunkPolicy(min_tokens=3))
    assert step(coalescer, 0.0, news(0)) == {0: 1}
    assert step(coalescer, 1.0, news(0)) == {}
    assert step(coalescer, 900.0, news(0)) == {}
    assert coalescer.due_at_s == math.inf
    assert step(coalescer, 901.0, news(0, tokens=2)) == {0: 4}


def test_chunk_with_both_minima_waits_for_both() -> None:
    coalescer = Coalescer(ChunkPolicy(1.0, 3))
    step(coalescer, 0.0, news(0))
    assert step(coalescer, 0.5, news(0, tokens=3)) == {}
    assert coalescer.due_at_s == 1.0
    assert step(coalescer, 1.0) == {0: 3}
    assert step(coalescer, 2.5, news(0)) == {}
    assert step(coalescer, 2.6, news(0, tokens=2)) == {0: 3}


def test_finish_releases_only_its_own_completion() -> None:
    coalescer = Coalescer(ChunkPolicy(10.0, 100))
    assert step(coalescer, 0.0, news(0, 1)) == {0: 1, 1: 1}
    assert step(coalescer, 0.1, news(0, 1)) == {}
    assert step(coalescer, 0.2, news(0, finish=True)) == {0: 2}
    assert step(coalescer, 0.3, news(1, finish=True, end=True)) == {1: 2}


def test_completion_that_starts_late_has_its_first_token_sent_at_once() -> None:
    coalescer = Coalescer(ChunkPolicy(1.0))
    step(coalescer, 0.0, news(0))
    assert step(coalescer, 0.5, news(0, 1)) == {1: 1}
    assert step(coalescer, 0.9, news(1)) == {}
    assert step(coalescer, 1.0) == {0: 1}
    assert coalescer.due_at_s == 1.5


def test_tokens_that_arrive_together_are_released_together() -> None:
    coalescer = Coalescer(ChunkPolicy(1.0))
    assert step(coalescer, 0.0, news(0), news(0), news(0)) == {0: 3}


def test_prompt_facts_and_the_end_are_never_held() -> None:
    coalescer = Coalescer(ChunkPolicy(1.0))
    facts = PromptFacts(cached_tokens=3)
    coalescer.take([Delta("k", prompt=facts)])
    assert coalescer.release(0.0) == [Delta("k", prompt=facts)]
    assert step(coalescer, 0.1, news(0)) == {0: 1}
    coalescer.take([news(0), news(0, finish=True, end=True)])
    leaving = coalescer.release(0.2)
    assert left(leaving) == {0: 2}
    assert [delta.end for delta in leaving] == [False, True]


def test_infinity_releases_all_held_deltas() -> None:
    coalescer = Coalescer(ChunkPolicy(10.0, 100))
    step(coalescer, 0.0, news(0, 1))
    step(coalescer, 0.1, news(0, 1))
    assert left(coalescer.release(math.inf)) == {0: 1, 1: 1}
    assert coalescer.release(math.inf) == []


@given(
    st.builds(ChunkPolicy, st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 5)),
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 2.0]), st.integers(0, 2), st.integers(0, 3)), max_size=60),
)
def test_nothing_is_lost_or_reordered_and_minima_hold(policy: ChunkPolicy, steps: list[tuple[float, int, int]]) -> None:
    coalescer, now_s, numbers = Coalescer(policy), 0.0, count()
    arrived: dict[int, list[int]] = defaultdict(list)
    chunks: dict[int, list[tuple[float, list[int]]]] = defaultdict(list)
    for pause_s, index, tokens in steps:
        now_s += pause_s
        ids = tuple(islice(numbers, tokens))
        arrived[index] += ids
        coalescer.take([Delta("k", (SequenceDelta(index, "", ids),))])
        for leaving, its_ids in ids_by_completion(coalescer.release(now_s)).items():
            chunks[leaving].append((now_s, its_ids))
    for sent in chunks.values():
        for (before_s, _), (at_s, its_ids) in pairwise(sent):
            assert at_s >= before_s + policy.min_interval_s
            assert len(its_ids) >= policy.min_tokens
    rest = ids_by_completion(coalescer.release(math.inf))
    assert {index: [*chain(*(ids for _, ids in chunks[index])), *rest.get(index, [])] for index in arrived} == arrived
