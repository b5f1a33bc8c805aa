"""The effect of each request field, from the client to the engine and back: compares texts and tokens with the expected ones."""

import zlib
from array import array
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from neox_serve.core.errors import Reason
from neox_serve.core.types import EmbeddingRequest, Pooling
from neox_serve.engine.fake import outputs
from neox_serve.engine.fake.outputs import Vocabulary
from neox_serve.v1 import generation_pb2, inference_service_pb2, model_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.whole_path import Path, events_of, stream_request, unary_request, whole_path

ADAPTERS = ("legal", "medical")
CONTEXT_TOKENS = 2048
LONG = tuple(range(1, CONTEXT_TOKENS + 101))
STOP, LENGTH = generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_LENGTH


def said_after(*text: int) -> list[int]:
    """Returns the next dozen tokens that the fake engine generates after a text."""
    said: list[int] = []
    while len(said) < 12:
        said.append(Vocabulary().token(zlib.crc32(array("q", [*text, *said]).tobytes())))
    return said


# Tokens after the prompt (5, 6, 7), and one that a logit bias makes certain.
FREE = said_after(5, 6, 7)
BIASED = 77
END_OF_TEXT = 0


def spoken(token_ids: list[int]) -> str:
    return "".join(f"tok{token_id} " for token_id in token_ids)


def finish(reason: generation_pb2.FinishReason.ValueType, **stop: Any) -> generation_pb2.Finish:
    return generation_pb2.Finish(index=0, reason=reason, **stop)


@pytest.fixture(scope="module")
async def path() -> AsyncIterator[Path]:
    async with whole_path(adapters=ADAPTERS) as path:
        yield path


def bias(token_id: int) -> dict[str, Any]:
    return {"logitBias": {str(token_id): 100}}


CASES: dict[str, tuple[dict[str, Any], list[int], str, generation_pb2.Finish]] = {
    "max_tokens": ({"stopping": {"maxTokens": 9}}, FREE[:9], spoken(FREE[:9]), finish(LENGTH)),
    "stop ids": (
        {"stopping": {"maxTokens": 12, "stopTokenIds": [999, FREE[5]]}},
        FREE[:6],
        spoken(FREE[:5]),
        finish(STOP, stop_token_id=FREE[5]),
    ),
    "stop ids included": (
        {"stopping": {"maxTokens": 12, "stopTokenIds": [FREE[5]], "includeStopInOutput": True}},
        FREE[:6],
        spoken(FREE[:6]),
        finish(STOP, stop_token_id=FREE[5]),
    ),
    "stop sequences": (
        {"stopping": {"maxTokens": 12, "stopSequences": ["absent", f"tok{FREE[4]}"]}},
        FREE[:5],
        spoken(FREE[:4]),
        finish(STOP, stop_sequence=f"tok{FREE[4]}"),
    ),
    "stop sequences included": (
        {"stopping": {"maxTokens": 12, "stopSequences": [f"tok{FREE[4]}"], "includeStopInOutput": True}},
        FREE[:5],
        spoken(FREE[:4]) + f"tok{FREE[4]}",
        finish(STOP, stop_sequence=f"tok{FREE[4]}"),
    ),
    "min_tokens before a stop id": (
        {"stopping": {"maxTokens": 12, "minTokens": 4, "stopTokenIds": [BIASED]}, "sampling": bias(BIASED)},
        [*FREE[:4], BIASED],
        spoken(FREE[:4]),
        finish(STOP, stop_token_id=BIASED),
    ),
    "min_tokens before the end of text": (
        {"stopping": {"maxTokens": 12, "minTokens": 3}, "sampling": bias(END_OF_TEXT)},
        [*FREE[:3], END_OF_TEXT],
        spoken(FREE[:3]),
        finish(STOP),
    ),
    "ignore_eos": (
        {"stopping": {"maxTokens": 4, "ignoreEos": True}, "sampling": bias(END_OF_TEXT)},
        [END_OF_TEXT] * 4,
        spoken([END_OF_TEXT] * 4),
        finish(LENGTH),
    ),
    "logit_bias": ({"stopping": {"maxTokens": 4}, "sampling": bias(BIASED)}, [BIASED] * 4, spoken([BIASED] * 4), finish(LENGTH)),
}


@pytest.mark.parametrize(("parameters", "token_ids", "text", "end"), CASES.values(), ids=CASES)
async def test_field_determines_tokens_text_and_finish(
    path: Path, parameters: dict[str, Any], token_ids: list[int], text: str, end: generation_pb2.Finish
) -> None:
    (result,) = (await path.stubs.inference.Generate(unary_request(**parameters))).results
    (completion,) = result.completions
    assert (list(completion.token_ids), completion.text, completion.finish) == (token_ids, text, end)
    *chunks, last = await events_of(path, stream_request(**parameters))
    assert [token_id for event in chunks for token_id in event.chunk.token_ids] == token_ids
    assert "".join(event.chunk.text for event in chunks) == text
    assert list(last.final.finishes) == [end]
    assert last.final.usage.completion_tokens == len(token_ids)


# Adapters


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_adapter_of_the_request_reaches_the_engine(path: Path, kind: str) -> None:
    for adapter in (*ADAPTERS, ""):
        if kind == "unary":
            request = unary_request(stopping={"maxTokens": 2})
            request.adapter = adapter
            await path.stubs.inference.Generate(request)
        else:
            stream = stream_request(stopping={"maxTokens": 2})
            stream.adapter = adapter
            await events_of(path, stream)
    assert [request.adapter for request in path.requests[-3:]] == ["legal", "medical", None]


async def test_adapter_that_is_not_served_is_refused_with_those_that_are(path: Path) -> None:
    requests_before = len(path.requests)
    request = unary_request()
    request.adapter = "other"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await path.stubs.inference.Generate(request)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.metadata["served"]) == (Reason.UNKNOWN_ADAPTER, "legal,medical")
    assert len(path.requests) == requests_before


async def test_adapters_are_listed_with_the_model(path: Path) -> None:
    (model,) = (await path.stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert list(model.adapters) == list(ADAPTERS)
    assert model_service_pb2.CAPABILITY_ADAPTERS in model.capabilities


# Truncation

ENDS = [
    pytest.param(generation_pb2.TRUNCATION_KEEP_END, lambda ids, room: ids[-room:], id="keep end"),
    pytest.param(generation_pb2.TRUNCATION_KEEP_START, lambda ids, room: ids[:room], id="keep start"),
]


@pytest.mark.parametrize(("truncation", "kept"), ENDS)
async def test_long_prompt_is_cut_to_make_room_for_max_tokens(path: Path, truncation: Any, kept: Any) -> None:
    room = CONTEXT_TOKENS - 8
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=LONG))
    parameters = generation_pb2.GenerationParameters(stopping=generation_pb2.Stopping(max_tokens=8), truncation=truncation)
    unary = await path.stubs.inference.Generate(inference_service_pb2.GenerateRequest(prompts=[prompt], parameters=parameters))
    stream = inference_service_pb2.StreamGenerateRequest(prompt=prompt, parameters=parameters)
    final = (await events_of(path, stream))[-1].final
    assert [request.prompt_token_ids for request in path.requests[-2:]] == [kept(LONG, room)] * 2
    for usage in (unary.usage, unary.results[0].usage, final.usage):
        assert (usage.prompt_tokens, usage.truncated_tokens, usage.completion_tokens) == (room, len(LONG) - room, 8)


@pytest.mark.parametrize(("truncation", "kept"), ENDS)
async def test_long_input_is_cut_to_the_context_before_it_is_embedded(path: Path, truncation: Any, kept: Any) -> None:
    long, short = (generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids)) for ids in (LONG, (5, 6)))
    request = inference_service_pb2.EmbedRequest(inputs=[long, short], truncation=truncation)
    response = await path.stubs.inference.Embed(request)
    expected = [embedding_of(ids) for ids in (kept(LONG, CONTEXT_TOKENS), (5, 6))]
    assert [list(embedding.values) for embedding in response.embeddings] == expected
    assert [embedding.prompt_tokens for embedding in response.embeddings] == [CONTEXT_TOKENS, 2]
    assert (response.usage.prompt_tokens, response.usage.truncated_tokens) == (CONTEXT_TOKENS + 2, len(LONG) - CONTEXT_TOKENS)


async def test_long_prompt_or_input_is_refused_where_no_end_is_named(path: Path) -> None:
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=LONG))
    calls: tuple[Any, ...] = (
        path.stubs.inference.Generate(inference_service_pb2.GenerateRequest(prompts=[prompt])),
        path.stubs.inference.Embed(inference_service_pb2.EmbedRequest(inputs=[prompt])),
    )
    for call, excess in zip(calls, ("101", "100"), strict=True):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = from_rpc_error(caught.value)
        assert (error.reason, error.metadata["excess_tokens"]) == (Reason.PROMPT_TOO_LONG, excess)


def embedding_of(token_ids: tuple[int, ...]) -> list[float]:
    """Returns the fake engine's vector for exactly these tokens with the default pooling."""
    result = outputs.embedding(EmbeddingRequest("r", token_ids, Pooling.MEAN), Vocabulary())
    return list(array("f", result.values))


# Timings


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_timings_of_a_generation_hold_every_part_in_its_order(path: Path, kind: str) -> None:
    prompt, parameters = generation_pb2.Prompt(text="import os"), unary_request(stopping={"maxTokens": 2}).parameters
    if kind == "unary":
        request = inference_service_pb2.GenerateRequest(prompts=[prompt] * 2, parameters=parameters)
        timings = (await path.stubs.inference.Generate(request)).timings
    else:
        stream = inference_service_pb2.StreamGenerateRequest(prompt=prompt, parameters=parameters)
        timings = (await events_of(path, stream))[-1].final.timings
    tokenization, admission, first_token, total = nanoseconds(timings, "tokenization", "admission", "first_token", "total")
    assert min(tokenization, admission) > 0
    assert tokenization + admission <= first_token <= total


async def test_timings_of_an_embedding_have_no_first_token(path: Path) -> None:
    request = inference_service_pb2.EmbedRequest(inputs=[generation_pb2.Prompt(text=text) for text in ("a", "b")])
    timings = (await path.stubs.inference.Embed(request)).timings
    tokenization, admission, total = nanoseconds(timings, "tokenization", "admission", "total")
    assert min(tokenization, admission) > 0
    assert tokenization + admission <= total
    assert not timings.HasField("first_token")


def nanoseconds(timings: generation_pb2.Timings, *parts: Any) -> list[int]:
    """Returns the timings, all of which must be present."""
    assert all(timings.HasField(part) for part in parts)
    return [getattr(timings, part).ToNanoseconds() for part in parts]
