"""Fitting prompts into the context: errors state the excess, truncation keeps the right end, long texts do not block the loop."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import TokenIds
from neox_serve.gateway.requests import prompts
from neox_serve.model.tokenizer import MAX_CHARACTERS_ON_THE_LOOP
from neox_serve.v1 import generation_pb2
from tests.fakes.gateways import builtin_tokenizer

CONTEXT = 16
NOT = generation_pb2.TRUNCATION_UNSPECIFIED
KEEP_END = generation_pb2.TRUNCATION_KEEP_END
KEEP_START = generation_pb2.TRUNCATION_KEEP_START


def parameters(max_tokens: int | None, truncation: generation_pb2.Truncation.ValueType = NOT) -> generation_pb2.GenerationParameters:
    stopping = generation_pb2.Stopping(max_tokens=max_tokens)
    return generation_pb2.GenerationParameters(stopping=stopping, truncation=truncation)


def fit(ids: TokenIds, room: prompts.Room) -> prompts.FittedPrompt:
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids))
    (fitted,) = asyncio.run(prompts.fit_prompts([prompt], "prompts[{}]", room, builtin_tokenizer()))
    return fitted


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, CONTEXT - 1)))
def test_prompt_fits_or_the_error_has_the_excess(length: int, max_tokens: int | None) -> None:
    room = prompts.generation_room(parameters(max_tokens), CONTEXT)
    excess = length + (max_tokens or 1) - CONTEXT
    ids = tuple(range(length))
    if excess <= 0:
        assert fit(ids, room).token_ids == ids
        return
    with pytest.raises(ServeError) as caught:
        fit(ids, room)
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert caught.value.metadata["excess_tokens"] == str(excess)
    assert caught.value.violations[0].field == "prompts[0]"


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, CONTEXT - 1)), st.sampled_from([KEEP_END, KEEP_START]))
def test_truncation_cuts_the_prompt_and_counts_the_tokens(
    length: int, max_tokens: int | None, truncation: generation_pb2.Truncation.ValueType
) -> None:
    room = prompts.generation_room(parameters(max_tokens, truncation), CONTEXT)
    ids = tuple(range(length))
    fitted = fit(ids, room)
    assert len(fitted.token_ids) + fitted.truncated_tokens == length
    assert 1 <= len(fitted.token_ids) <= CONTEXT - (max_tokens or 1)
    kept = len(fitted.token_ids)
    assert fitted.token_ids == (ids[:kept] if truncation == KEEP_START else ids[-kept:])
    max_output_tokens = prompts.output_tokens(fitted, "prompts[0]", parameters(max_tokens).stopping, CONTEXT)
    assert max_output_tokens == (max_tokens or CONTEXT - kept)


def test_min_tokens_above_the_context_left_is_refused() -> None:
    stopping = generation_pb2.Stopping(min_tokens=8)
    with pytest.raises(ServeError) as caught:
        prompts.output_tokens(prompts.FittedPrompt(tuple(range(10)), 0), "prompt", stopping, CONTEXT)
    assert caught.value.violations[0].field == "parameters.stopping.min_tokens"


def test_embedding_may_fill_the_context() -> None:
    room = prompts.embedding_room(generation_pb2.TRUNCATION_UNSPECIFIED, CONTEXT)
    assert len(fit(tuple(range(CONTEXT)), room).token_ids) == CONTEXT
    with pytest.raises(ServeError):
        fit(tuple(range(CONTEXT + 1)), room)


def test_far_too_long_text_is_refused_before_tokenization(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = builtin_tokenizer()
    monkeypatch.setattr(tokenizer, "encode", None)
    text = "a" * 1_000_000
    room = prompts.embedding_room(generation_pb2.TRUNCATION_UNSPECIFIED, CONTEXT)
    with pytest.raises(ServeError) as caught:
        asyncio.run(prompts.fit_prompts([generation_pb2.Prompt(text=text)], "prompts[{}]", room, tokenizer))
    assert "at least" in caught.value.message


def test_long_text_is_tokenized_in_a_thread() -> None:
    text = "def f(x): return x\n" * 20_000

    async def turns_while_encoding() -> int:
        task = asyncio.ensure_future(builtin_tokenizer().encode_aside(text))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert len(text) > MAX_CHARACTERS_ON_THE_LOOP
    assert asyncio.run(turns_while_encoding()) > 20
