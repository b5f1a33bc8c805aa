"""Tokenizes prompts and fits them into the context of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from neox_serve.core.errors import FieldViolation, Reason, ServeError
from neox_serve.core.types import TokenIds
from neox_serve.gateway.requests.violations import refusal
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Room:
    """The room for a prompt in the context."""

    tokens: int
    """Maximum tokens of the prompt."""
    explanation: str
    """What determines the maximum, for error messages."""
    truncation: generation_pb2.Truncation.ValueType
    """How a longer prompt is cut."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that fits into the context."""

    token_ids: TokenIds
    """Tokens that remain."""
    truncated_tokens: int
    """Number of tokens that were cut off."""


def generation_room(parameters: generation_pb2.GenerationParameters, max_model_len: int) -> Room:
    """Returns the room that is left beside max_tokens or, if that is absent, beside one token."""
    if not parameters.stopping.HasField("max_tokens"):
        return Room(max_model_len - 1, f"the context of {max_model_len} tokens and one generated token", parameters.truncation)
    output = parameters.stopping.max_tokens
    explanation = f"the context of {max_model_len} tokens and max_tokens {output}"
    return Room(max_model_len - output, explanation, parameters.truncation)


def embedding_room(truncation: generation_pb2.Truncation.ValueType, max_model_len: int) -> Room:
    """Returns the room for an input to embed, which is the whole context."""
    return Room(max_model_len, f"the context of {max_model_len} tokens", truncation)


async def fit_prompts(prompts: Sequence[generation_pb2.Prompt], path: str, room: Room, tokenizer: Tokenizer) -> list[FittedPrompt]:
    """Tokenizes prompts and fits them into the room. `path` is the format of a prompt's path, such as "prompts[{}]".

    Raises PROMPT_TOO_LONG with a violation for each prompt that does not fit, and the largest excess in the metadata `excess_tokens`.
    """
    token_ids = [await _token_ids(prompt, path.format(index), room, tokenizer) for index, prompt in enumerate(prompts)]
    excesses = [max(0, len(ids) - room.tokens) for ids in token_ids]
    if room.truncation == generation_pb2.TRUNCATION_UNSPECIFIED and any(excesses):
        raise _too_long({path.format(index): excess for index, excess in enumerate(excesses) if excess}, room)
    return [FittedPrompt(_cut(ids, room), excess) for ids, excess in zip(token_ids, excesses, strict=True)]


def fit_pair(context: TokenIds, continuation: TokenIds, path: str, room: Room) -> tuple[TokenIds, int]:
    """Returns both as one prompt, and the number of tokens cut off the start of the context. Raises PROMPT_TOO_LONG."""
    excess = max(0, len(context) + len(continuation) - room.tokens)
    if excess > (len(context) - 1 if room.truncation == generation_pb2.TRUNCATION_KEEP_END else 0):
        raise _too_long({path: excess}, room)
    return (*context[excess:], *continuation), excess


def output_tokens(prompt: FittedPrompt, path: str, stopping: generation_pb2.Stopping, max_model_len: int) -> int:
    """Returns the maximum tokens to generate after this prompt. Raises INVALID_ARGUMENT if min_tokens is larger."""
    rest = max_model_len - len(prompt.token_ids)
    max_tokens = stopping.max_tokens if stopping.HasField("max_tokens") else rest
    if stopping.min_tokens > max_tokens:
        limit = f"{max_tokens}, which {path} leaves of the context of {max_model_len} tokens"
        description = f"got {stopping.min_tokens}, must be at most {limit}"
        raise refusal(Reason.INVALID_ARGUMENT, [FieldViolation("parameters.stopping.min_tokens", description)])
    return max_tokens


async def _token_ids(prompt: generation_pb2.Prompt, path: str, room: Room, tokenizer: Tokenizer) -> TokenIds:
    if prompt.WhichOneof("content") == "token_ids":
        return tuple(prompt.token_ids.ids)
    min_tokens = tokenizer.min_tokens(prompt.text)
    if room.truncation == generation_pb2.TRUNCATION_UNSPECIFIED and min_tokens > room.tokens:
        raise _too_long({path: min_tokens - room.tokens}, room, bound="at least ")
    ids = await tokenizer.encode_aside(prompt.text)
    if not ids:
        raise refusal(Reason.INVALID_ARGUMENT, [FieldViolation(f"{path}.text", "got no tokens, must have at least one")])
    return ids


def _cut(ids: TokenIds, room: Room) -> TokenIds:
    if len(ids) <= room.tokens:
        return ids
    return ids[: room.tokens] if room.truncation == generation_pb2.TRUNCATION_KEEP_START else ids[len(ids) - room.tokens :]


def _too_long(excesses: dict[str, int], room: Room, bound: str = "") -> ServeError:
    limit = f"must be at most {room.tokens} to fit {room.explanation}"
    violations = [
        FieldViolation(path, f"got {bound}{room.tokens + excess} tokens, {limit}; {excess} too many") for path, excess in excesses.items()
    ]
    return refusal(Reason.PROMPT_TOO_LONG, violations, excess_tokens=str(max(excesses.values())), max_prompt_tokens=str(room.tokens))
