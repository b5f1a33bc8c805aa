"""The simulated engines of the routing benchmark compute exactly the tokens that are not cached."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.engines import SimulatedEngine, Speed, Work

BLOCK_TOKENS = 16
PROMPTS = st.lists(st.integers(0, 5), min_size=1, max_size=6).map(lambda ids: tuple((n, *ids[: n + 1]) for n in range(len(ids))))
WORKS = st.lists(st.tuples(PROMPTS, st.integers(1, BLOCK_TOKENS), st.integers(1, 9)), min_size=1, max_size=8)


def work(blocks: tuple[tuple[int, ...], ...], rest_tokens: int, output_tokens: int) -> Work:
    return Work(0.0, tuple(map(hash, blocks)), len(blocks) * BLOCK_TOKENS + rest_tokens, output_tokens)


@settings(max_examples=100, deadline=None)
@given(WORKS, st.integers(8, 40), st.integers(20, 200))
def test_engine_completes_every_request_and_computes_each_token_once(
    requests: list[tuple[tuple[tuple[int, ...], ...], int, int]], capacity_blocks: int, step_tokens: int
) -> None:
    engine = SimulatedEngine(Speed(step_tokens=step_tokens), capacity_blocks, BLOCK_TOKENS)
    works = [work(*one) for one in requests]
    for each in works:
        engine.submit(each)
    now_s, ended, there = 0.0, list[Work](), set[int]()
    while not engine.idle:
        step = engine.step(now_s)
        assert step.ends_s > now_s
        assert there >= set(step.news.removed)
        there -= set(step.news.removed)
        assert not there & set(step.news.stored)
        there |= set(step.news.stored)
        assert len(there) <= capacity_blocks
        now_s, ended = step.ends_s, ended + step.ended
    assert {id(each) for each in ended} == {id(each) for each in works}
    assert all(each.cached_tokens + each.computed_tokens == each.prompt_tokens for each in works)
    assert all(0 <= each.cached_tokens < each.prompt_tokens and each.written_tokens == each.output_tokens for each in works)
    assert engine.computed_tokens == sum(each.computed_tokens + each.output_tokens - 1 for each in works)


def test_step_duration_is_the_sum_of_its_tokens() -> None:
    engine = SimulatedEngine(Speed(step_s=1.0, prompt_token_s=0.1, sequence_s=0.01, step_tokens=100), 40, BLOCK_TOKENS)
    engine.submit(Work(0.0, (), 130, 3))
    assert [engine.step(0.0).ends_s for _ in range(4)] == [1 + 10, 1 + 3, 1.01, 1.01]
    assert engine.idle
