"""Public protobuf messages <-> core types. Incoming messages have been validated before."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

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
    TokenIds,
    TokenLogprob,
)
from neox_serve.v1 import generation_pb2, inference_service_pb2

_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)

_FINISH_REASONS: Mapping[FinishReason, generation_pb2.FinishReason.ValueType] = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
}

POOLINGS: Mapping[Pooling, inference_service_pb2.Pooling.ValueType] = {
    Pooling.LAST: inference_service_pb2.POOLING_LAST,
    Pooling.MEAN: inference_service_pb2.POOLING_MEAN,
}
"""Poolings, from core to protobuf."""

_POOLINGS_BACK = {number: pooling for pooling, number in POOLINGS.items()}


def generation_request(
    *,
    request_id: str,
    prompt_token_ids: TokenIds,
    max_tokens: int,
    parameters: generation_pb2.GenerationParameters,
    beam: generation_pb2.BeamSearch | None = None,
    adapter: str = "",
    cache_salt: str | None = None,
    session: str = "",
) -> GenerationRequest:
    """Returns the engine request of one prompt. `max_tokens` is what the parameters and the prompt allow."""
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        stopping=_stopping(parameters.stopping, max_tokens),
        sampling=_sampling(parameters.sampling),
        structured_output=_structured_output(parameters.structured_output),
        beam=None if beam is None else _beam(beam),
        adapter=adapter or None,
        cache_salt=cache_salt,
        session=session,
        **_present(parameters, ("n", "logprobs", "prompt_logprobs")),
    )


def pooling(number: inference_service_pb2.Pooling.ValueType, default: Pooling) -> Pooling:
    """Returns the core pooling; the default for POOLING_UNSPECIFIED."""
    return _POOLINGS_BACK.get(number, default)


def finish_message(index: int, finish: Finish) -> generation_pb2.Finish:
    """Returns the message that says how a completion ended."""
    message = generation_pb2.Finish(index=index, reason=_FINISH_REASONS[finish.reason])
    if isinstance(finish.stop, str):
        message.stop_sequence = finish.stop
    elif finish.stop is not None:
        message.stop_token_id = finish.stop
    return message


def logprob_messages(positions: Iterable[PositionLogprobs]) -> list[generation_pb2.PositionLogprobs]:
    """Returns one message for each position."""
    return [
        generation_pb2.PositionLogprobs(
            token=token_logprob_message(position.token), alternatives=[token_logprob_message(token) for token in position.alternatives]
        )
        for position in positions
    ]


def embedding_message(result: EmbeddingResult, prompt_tokens: int) -> inference_service_pb2.Embedding:
    """Returns the message of a vector, whose values are little-endian float32, the byte order of every supported platform."""
    return inference_service_pb2.Embedding(values=memoryview(result.values).cast("f"), prompt_tokens=prompt_tokens)


def duration(seconds: float) -> Duration:
    """Returns seconds as a Duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


class ChunkWriter:
    """Serializes the chunks of a stream. It reuses one message, which takes half the time of creating one for each chunk."""

    def __init__(self) -> None:
        self._event = inference_service_pb2.StreamGenerateResponse()
        self._chunk = self._event.chunk

    def write(self, index: int, text: str, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] = ()) -> bytes:
        """Returns a serialized StreamGenerateResponse with one chunk."""
        chunk = self._chunk
        chunk.index = index
        chunk.text = text
        chunk.token_ids[:] = token_ids
        if logprobs or chunk.logprobs:
            del chunk.logprobs[:]
            chunk.logprobs.extend(logprob_messages(logprobs))
        return self._event.SerializeToString()

    def write_sequences(self, sequences: Sequence[SequenceDelta]) -> list[bytes]:
        """Returns the serialized chunks of these deltas, at most one for each index, and none for deltas without text and tokens."""
        if len(sequences) == 1:
            (only,) = sequences
            return [self.write(only.index, only.text, only.token_ids, only.logprobs)] if only.token_ids or only.text else []
        return [
            self.write(
                index,
                "".join(delta.text for delta in deltas),
                [token_id for delta in deltas for token_id in delta.token_ids],
                [position for delta in deltas for position in delta.logprobs],
            )
            for index, deltas in _by_index(sequences).items()
        ]


def _by_index(sequences: Iterable[SequenceDelta]) -> dict[int, list[SequenceDelta]]:
    grouped: dict[int, list[SequenceDelta]] = {}
    for delta in sequences:
        if delta.token_ids or delta.text:
            grouped.setdefault(delta.index, []).append(delta)
    return grouped


def _present(message: Message, fields: Iterable[str]) -> dict[str, Any]:
    """Returns the values of the fields that are present. The core types have the defaults of the others."""
    return {field: getattr(message, field) for field in fields if message.HasField(field)}


def _sampling(message: generation_pb2.Sampling) -> Sampling:
    return Sampling(**_present(message, _SAMPLING_FIELDS), logit_bias=dict(message.logit_bias))


def _stopping(message: generation_pb2.Stopping, max_tokens: int) -> Stopping:
    return Stopping(
        max_tokens=max_tokens,
        min_tokens=message.min_tokens,
        stop_sequences=tuple(message.stop_sequences),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        include_stop_in_output=message.include_stop_in_output,
    )


def _structured_output(message: generation_pb2.StructuredOutput) -> StructuredOutput | None:
    match message.WhichOneof("constraint"):
        case "json_schema":
            return JsonSchema(message.json_schema)
        case "regex":
            return Regex(message.regex)
        case "choice":
            return Choice(tuple(message.choice.texts))
    return None


def _beam(message: generation_pb2.BeamSearch) -> Beam:
    return Beam(width=message.beam_width, **_present(message, ("length_penalty", "num_return")))


def token_logprob_message(token: TokenLogprob) -> generation_pb2.TokenLogprob:
    """Returns the message of a token and its log-probability."""
    return generation_pb2.TokenLogprob(token_id=token.token_id, text=token.text, logprob=token.logprob, rank=token.rank)
