"""Validation of requests against the ranges that the protos document. Pure; violations name the field, its value and what is allowed.

There are two stages. The functions `check_*` look only at the message; `neox_serve.gateway.requests.prompts` then fits the tokenized
prompts into the context.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from neox_serve.core.types import ModelLimits, Pool
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.requests.structured_outputs import check_structured_output
from neox_serve.gateway.requests.violations import Violations
from neox_serve.model.chat import ROLES
from neox_serve.v1 import generation_pb2, inference_service_pb2, token_service_pb2

MAX_MESSAGES = 1_000
MAX_LOGIT_BIASES = 1_024
MAX_STOP_SEQUENCE_BYTES = 256
MAX_SEED = 2**63 - 1

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
REQUEST_ID_ALLOWED = "1 to 128 characters of [A-Za-z0-9._:-]"


class Identified(Protocol):
    """A request message with an id."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Range:
    """The allowed interval of an optional number. NaN is outside of every interval."""

    field: str
    """Name of the field."""
    low: float
    """Lower end."""
    high: float
    """Upper end, which is allowed."""
    above_low: bool = False
    """Whether the lower end itself is not allowed."""

    def __str__(self) -> str:
        return f"in {'(' if self.above_low else '['}{self.low:g}, {self.high:g}]"

    def contains(self, value: float) -> bool:
        """Returns whether the value is in the interval."""
        return self.low <= value <= self.high and not (self.above_low and value == self.low)

    def check(self, message: Message, path: str, violations: Violations) -> None:
        """Adds a violation if the field is present and outside of the interval."""
        if message.HasField(self.field):
            value = getattr(message, self.field)
            violations.require(self.contains(value), f"{path}.{self.field}", value, str(self))


SAMPLING_RANGES = (
    Range("temperature", 0, 2),
    Range("top_p", 0, 1, above_low=True),
    Range("min_p", 0, 1),
    Range("repetition_penalty", 0, 2, above_low=True),
    Range("presence_penalty", -2, 2),
    Range("frequency_penalty", -2, 2),
)
LOGIT_BIAS = Range("logit_bias", -100, 100)
LENGTH_PENALTY = Range("length_penalty", -5, 5)
CHUNK_INTERVAL_S = Range("min_chunk_interval", 0, 10)
CHUNK_TOKENS = Range("min_chunk_tokens", 1, 1_024)

_NOT_WITH_BEAMS: tuple[Literal["sampling", "structured_output", "n", "logprobs", "prompt_logprobs"], ...] = (
    "sampling",
    "structured_output",
    "n",
    "logprobs",
    "prompt_logprobs",
)


def is_request_id(text: str) -> bool:
    """Returns whether the text is a valid request id."""
    return _REQUEST_ID.fullmatch(text) is not None


def check_generate(request: inference_service_pb2.GenerateRequest | inference_service_pb2.EstimateRequest, served: Served) -> ModelLimits:
    """Returns the limits of the model. Raises UNKNOWN_MODEL, UNKNOWN_ADAPTER, or INVALID_ARGUMENT with all violations."""
    limits = served.limits_of(Pool.GENERATION, request.model)
    served.check_adapter(request.adapter)
    violations = Violations()
    _check_request_id(request, violations)
    _check_enum(request.priority, generation_pb2.PriorityClass, "priority", violations)
    _check_prompts(request.prompts, "prompts", limits, violations, chats=True)
    _check_parameters(request.parameters, limits, violations)
    if request.HasField("beam_search"):
        _check_beams(request.beam_search, request.parameters, limits, violations)
    violations.raise_if_any()
    return limits


def check_stream_generate(request: inference_service_pb2.StreamGenerateRequest, served: Served) -> ModelLimits:
    """Returns the limits of the model. Raises ServeError as `check_generate` does."""
    limits = served.limits_of(Pool.GENERATION, request.model)
    served.check_adapter(request.adapter)
    violations = Violations()
    _check_request_id(request, violations)
    _check_enum(request.priority, generation_pb2.PriorityClass, "priority", violations)
    _check_prompt(request.prompt, "prompt", limits, violations, chats=True)
    _check_parameters(request.parameters, limits, violations)
    _check_seconds(request.options.min_chunk_interval, "options", CHUNK_INTERVAL_S, violations)
    CHUNK_TOKENS.check(request.options, "options", violations)
    violations.raise_if_any()
    return limits


def check_score(request: inference_service_pb2.ScoreRequest, served: Served) -> ModelLimits:
    """Returns the limits of the model. Raises UNKNOWN_MODEL, UNKNOWN_ADAPTER, or INVALID_ARGUMENT with all violations."""
    limits = served.limits_of(Pool.GENERATION, request.model)
    served.check_adapter(request.adapter)
    violations = Violations()
    _check_request_id(request, violations)
    _check_enum(request.priority, generation_pb2.PriorityClass, "priority", violations)
    _check_enum(request.truncation, generation_pb2.Truncation, "truncation", violations)
    if request.truncation == generation_pb2.TRUNCATION_KEEP_START:
        violations.add("truncation", "got KEEP_START, which would cut off the continuation; must be KEEP_END or absent")
    violations.count(len(request.items), "items", limits.prompts_per_request, min_entries=1)
    for index, item in enumerate(request.items[: limits.prompts_per_request]):
        if item.context.text or item.context.token_ids.ids:
            _check_prompt(item.context, f"items[{index}].context", limits, violations)
        _check_prompt(item.continuation, f"items[{index}].continuation", limits, violations)
    violations.raise_if_any()
    return limits


def check_embed(request: inference_service_pb2.EmbedRequest, served: Served) -> ModelLimits:
    """Returns the limits of the model. Raises UNKNOWN_MODEL, or INVALID_ARGUMENT with all violations."""
    limits = served.limits_of(Pool.EMBEDDING, request.model)
    violations = Violations()
    _check_request_id(request, violations)
    _check_enum(request.priority, generation_pb2.PriorityClass, "priority", violations)
    _check_prompts(request.inputs, "inputs", limits, violations)
    _check_enum(request.pooling, inference_service_pb2.Pooling, "pooling", violations)
    if request.HasField("layer"):
        allowed = f"{served.embedding_layer}, the layer of the embedding pool"
        violations.require(request.layer == served.embedding_layer, "layer", request.layer, allowed)
    _check_enum(request.truncation, generation_pb2.Truncation, "truncation", violations)
    violations.raise_if_any()
    return limits


def check_tokenize(request: token_service_pb2.TokenizeRequest, served: Served) -> None:
    """Validates the request. Raises UNKNOWN_MODEL, or INVALID_ARGUMENT with all violations."""
    limits = served.limits_of(Pool.GENERATION, request.model)
    violations = Violations()
    _check_request_id(request, violations)
    violations.count(len(request.texts), "texts", limits.prompts_per_request, min_entries=1)
    violations.raise_if_any()


def check_detokenize(request: token_service_pb2.DetokenizeRequest, served: Served) -> None:
    """Validates the request. Raises UNKNOWN_MODEL, or INVALID_ARGUMENT with all violations."""
    limits = served.limits_of(Pool.GENERATION, request.model)
    violations = Violations()
    _check_request_id(request, violations)
    violations.count(len(request.sequences), "sequences", limits.prompts_per_request, min_entries=1)
    for index, sequence in enumerate(request.sequences):
        violations.token_ids(sequence.ids, f"sequences[{index}].ids", limits.vocabulary_size)
    violations.raise_if_any()


def _check_request_id(request: Identified, violations: Violations) -> None:
    if request.request_id:
        violations.require(is_request_id(request.request_id), "request_id", request.request_id, REQUEST_ID_ALLOWED)


def _check_prompts(
    prompts: Sequence[generation_pb2.Prompt], path: str, limits: ModelLimits, violations: Violations, *, chats: bool = False
) -> None:
    violations.count(len(prompts), path, limits.prompts_per_request, min_entries=1)
    for index, prompt in enumerate(prompts[: limits.prompts_per_request]):
        _check_prompt(prompt, f"{path}[{index}]", limits, violations, chats=chats)


def _check_prompt(prompt: generation_pb2.Prompt, path: str, limits: ModelLimits, violations: Violations, *, chats: bool = False) -> None:
    match prompt.WhichOneof("content"):
        case "text":
            violations.require(bool(prompt.text), f"{path}.text", prompt.text, "a non-empty text")
        case "token_ids":
            ids = prompt.token_ids.ids
            violations.require(bool(ids), f"{path}.token_ids", [], "at least one token id")
            violations.token_ids(ids, f"{path}.token_ids.ids", limits.vocabulary_size)
        case "chat" if chats:
            _check_chat(prompt.chat, f"{path}.chat", violations)
        case "chat":
            violations.add(f"{path}.chat", "is accepted by Generate, StreamGenerate and Estimate only; must be text or token_ids here")
        case _:
            violations.add(path, f"has no content, must have {'text, token_ids or chat' if chats else 'text or token_ids'}")


def _check_chat(chat: generation_pb2.Chat, path: str, violations: Violations) -> None:
    violations.count(len(chat.messages), f"{path}.messages", MAX_MESSAGES, min_entries=1)
    for index, message in enumerate(chat.messages[:MAX_MESSAGES]):
        violations.require(message.role in ROLES, f"{path}.messages[{index}].role", message.role, f"one of {', '.join(ROLES)}")


def _check_parameters(parameters: generation_pb2.GenerationParameters, limits: ModelLimits, violations: Violations) -> None:
    path = "parameters"
    _check_sampling(parameters.sampling, f"{path}.sampling", limits, violations)
    _check_stopping(parameters.stopping, f"{path}.stopping", limits, violations)
    if parameters.HasField("structured_output"):
        check_structured_output(parameters.structured_output, f"{path}.structured_output", violations)
    for bound in (Range("n", 1, limits.n), Range("logprobs", 0, limits.logprobs), Range("prompt_logprobs", 0, limits.logprobs)):
        bound.check(parameters, path, violations)
    _check_enum(parameters.truncation, generation_pb2.Truncation, f"{path}.truncation", violations)
    _check_enum(parameters.on_deadline, generation_pb2.DeadlineBehavior, f"{path}.on_deadline", violations)


def _check_sampling(sampling: generation_pb2.Sampling, path: str, limits: ModelLimits, violations: Violations) -> None:
    for bound in SAMPLING_RANGES:
        bound.check(sampling, path, violations)
    Range("top_k", 1, limits.vocabulary_size).check(sampling, path, violations)
    if sampling.HasField("seed"):
        violations.require(sampling.seed <= MAX_SEED, f"{path}.seed", sampling.seed, "in [0, 2^63)")
    biases = sampling.logit_bias
    violations.count(len(biases), f"{path}.logit_bias", MAX_LOGIT_BIASES)
    for token_id, bias in biases.items():
        entry = f"{path}.logit_bias[{token_id}]"
        violations.require(token_id < limits.vocabulary_size, entry, token_id, f"a token id in [0, {limits.vocabulary_size})")
        violations.require(LOGIT_BIAS.contains(bias), entry, bias, str(LOGIT_BIAS))


def _check_stopping(stopping: generation_pb2.Stopping, path: str, limits: ModelLimits, violations: Violations) -> None:
    max_tokens = limits.max_model_len - 1  # a prompt has at least one
    Range("max_tokens", 1, max_tokens).check(stopping, path, violations)
    max_min_tokens = min(stopping.max_tokens, max_tokens) if stopping.HasField("max_tokens") else max_tokens
    Range("min_tokens", 0, max_min_tokens).check(stopping, path, violations)
    violations.count(len(stopping.stop_sequences), f"{path}.stop_sequences", limits.stop_sequences)
    for index, text in enumerate(stopping.stop_sequences[: limits.stop_sequences]):
        size = len(text.encode())
        violations.require(
            1 <= size <= MAX_STOP_SEQUENCE_BYTES, f"{path}.stop_sequences[{index}]", text, f"1 to {MAX_STOP_SEQUENCE_BYTES} bytes"
        )
    violations.count(len(stopping.stop_token_ids), f"{path}.stop_token_ids", limits.stop_token_ids)
    violations.token_ids(stopping.stop_token_ids, f"{path}.stop_token_ids", limits.vocabulary_size)


def _check_beams(
    beams: generation_pb2.BeamSearch, parameters: generation_pb2.GenerationParameters, limits: ModelLimits, violations: Violations
) -> None:
    path = "beam_search"
    violations.require(1 <= beams.beam_width <= limits.beam_width, f"{path}.beam_width", beams.beam_width, f"in [1, {limits.beam_width}]")
    LENGTH_PENALTY.check(beams, path, violations)
    Range("num_return", 1, max(1, min(beams.beam_width, limits.beam_width))).check(beams, path, violations)
    present: list[str] = [name for name in _NOT_WITH_BEAMS if parameters.HasField(name)]
    if parameters.stopping.HasField("min_tokens"):
        present.append("stopping.min_tokens")
    for name in present:
        violations.add(f"parameters.{name}", "must be absent if beam_search is set")


def _check_seconds(duration: Duration, path: str, bound: Range, violations: Violations) -> None:
    seconds = duration.ToNanoseconds() / 1e9
    well_formed = abs(duration.nanos) < 1_000_000_000
    violations.require(well_formed and bound.contains(seconds), f"{path}.{bound.field}", seconds, f"{bound} s, with nanos below 10^9")


def _check_enum(number: int, enum: Any, path: str, violations: Violations) -> None:
    violations.require(number in enum.values(), path, number, f"one of {_names(enum.keys())}")


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
