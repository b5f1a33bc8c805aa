"""Public messages to core types and back: nothing is lost, defaults are as documented, and coalescing changes no text."""

from array import array
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.types import (
    Beam,
    Choice,
    EmbeddingResult,
    Finish,
    FinishReason,
    GenerationRequest,
    JsonSchema,
    Pooling,
    PositionLogprobs,
    Regex,
    Sampling,
    SequenceDelta,
    Stopping,
    StructuredOutput,
    TokenLogprob,
)
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire import public_messages as wire

LOGPROB = PositionLogprobs(TokenLogprob(1, -0.5, 1, "a"), (TokenLogprob(1, -0.5, 1, "a"), TokenLogprob(2, -1.5, 2, "b")))


def core_request(parameters: dict[str, Any], **more: Any) -> GenerationRequest:
    message = json_format.ParseDict(parameters, generation_pb2.GenerationParameters())
    return wire.generation_request(request_id="id", prompt_token_ids=(1, 2), max_tokens=9, parameters=message, **more)


def test_absent_fields_have_the_documented_defaults() -> None:
    assert core_request({}) == GenerationRequest("id", (1, 2), Stopping(9))


def test_every_field_arrives() -> None:
    request = core_request(
        {
            "sampling": {
                "temperature": 0,
                "topP": 0.5,
                "topK": 3,
                "minP": 0.25,
                "repetitionPenalty": 1.5,
                "presencePenalty": -1,
                "frequencyPenalty": 2,
                "seed": "0",
                "logitBias": {"7": -100},
            },
            "stopping": {
                "minTokens": 2,
                "stopSequences": ["x"],
                "stopTokenIds": [4],
                "ignoreEos": True,
                "includeStopInOutput": True,
            },
            "n": 3,
            "logprobs": 0,
            "promptLogprobs": 5,
        },
        adapter="tuned",
    )
    sampling = Sampling(0.0, 0.5, 3, 0.25, 1.5, -1.0, 2.0, 0, {7: -100.0})
    stopping = Stopping(9, 2, ("x",), (4,), True, True)
    assert request == GenerationRequest("id", (1, 2), stopping, sampling, n=3, logprobs=0, prompt_logprobs=5, adapter="tuned")


@pytest.mark.parametrize(
    ("fields", "structured_output"),
    [
        ({"jsonSchema": "{}"}, JsonSchema("{}")),
        ({"regex": "a+"}, Regex("a+")),
        ({"choice": {"texts": ["a", "b"]}}, Choice(("a", "b"))),
    ],
)
def test_structured_output_arrives(fields: dict[str, Any], structured_output: StructuredOutput) -> None:
    assert core_request({"structuredOutput": fields}).structured_output == structured_output


def test_beam_search_arrives_with_its_defaults() -> None:
    assert core_request({}, beam=generation_pb2.BeamSearch(beam_width=4)).beam == Beam(4, 1.0, 1)
    beam = generation_pb2.BeamSearch(beam_width=4, length_penalty=-0.5, num_return=2)
    assert core_request({}, beam=beam).beam == Beam(4, -0.5, 2)


@pytest.mark.parametrize("method", list(Pooling))
def test_pooling_round_trip(method: Pooling) -> None:
    assert wire.pooling(wire.POOLINGS[method], Pooling.LAST) is method
    assert wire.pooling(inference_service_pb2.POOLING_UNSPECIFIED, method) is method


@pytest.mark.parametrize("reason", list(FinishReason))
def test_every_finish_reason_has_its_number(reason: FinishReason) -> None:
    message = wire.finish_message(2, Finish(reason))
    assert message.index == 2
    assert generation_pb2.FinishReason.Name(message.reason) == f"FINISH_REASON_{reason.name}"
    assert message.WhichOneof("stop") is None


def test_finish_holds_what_matched() -> None:
    assert wire.finish_message(0, Finish(FinishReason.STOP, "\n")).stop_sequence == "\n"
    zero = wire.finish_message(0, Finish(FinishReason.STOP, 0))
    assert (zero.WhichOneof("stop"), zero.stop_token_id) == ("stop_token_id", 0)


def test_embedding_keeps_every_value() -> None:
    values = array("f", [0.1, -2.5, 3e-38])
    message = wire.embedding_message(EmbeddingResult(values.tobytes()), 4)
    assert list(message.values) == list(values)
    assert message.prompt_tokens == 4


deltas = st.builds(
    SequenceDelta,
    st.integers(0, 2),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.lists(st.integers(0, 999), max_size=3).map(tuple),
    st.lists(st.just(LOGPROB), max_size=2).map(tuple),
)


@given(st.lists(st.lists(deltas, max_size=6), max_size=6))
def test_concatenated_chunks_equal_the_deltas_in_any_batching(batches: list[list[SequenceDelta]]) -> None:
    writer = wire.ChunkWriter()
    chunks = [
        inference_service_pb2.StreamGenerateResponse.FromString(raw).chunk for batch in batches for raw in writer.write_sequences(batch)
    ]
    for index in range(3):
        given_deltas = [delta for batch in batches for delta in batch if delta.index == index and (delta.text or delta.token_ids)]
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert "".join(chunk.text for chunk in mine) == "".join(delta.text for delta in given_deltas)
        assert [t for chunk in mine for t in chunk.token_ids] == [t for delta in given_deltas for t in delta.token_ids]
        assert sum(len(chunk.logprobs) for chunk in mine) == sum(len(delta.logprobs) for delta in given_deltas)


@given(st.lists(deltas, max_size=12))
def test_batch_gives_at_most_one_chunk_for_each_index(batch: list[SequenceDelta]) -> None:
    raws = wire.ChunkWriter().write_sequences(batch)
    indices = [inference_service_pb2.StreamGenerateResponse.FromString(raw).chunk.index for raw in raws]
    assert len(indices) == len(set(indices))
