"""What callers may pass to the client, by name. Everything is optional; the server checks ranges and names the field that is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from neox_serve.core.types import Pooling

Chat = Sequence[Mapping[str, str]]
"""Messages: {"role": "system", "user" or "assistant", "content": text}. Only `generate`, `stream` and `estimate` take them."""
Prompt = str | Sequence[int] | Chat
"""A text, or token ids of the served model's vocabulary."""

Truncation = Literal["keep_end", "keep_start"]
OnDeadline = Literal["error", "partial"]


class CallOptions(TypedDict, total=False):
    """Options of every call.

    request_id: 1 to 128 characters of [A-Za-z0-9._:-]; made by the client where absent. timeout_s: seconds until the call, with all
    its retries, fails with DEADLINE_EXCEEDED. model: a name from `models()`; absent, the one that is served.
    """

    request_id: str | None
    timeout_s: float | None
    model: str | None


Priority = Literal["system", "interactive", "default", "bulk"]


class ModelCallOptions(CallOptions, total=False):
    """Options of calls that run the model. priority: which class they ask for; the tenant's ceiling bounds it."""

    priority: Priority | None


class GenerationOptions(ModelCallOptions, total=False):
    """Options of `generate` and `stream`. Ranges and defaults: GenerationParameters in protos/neox_serve/v1/generation.proto.

    stop: one or many stop sequences. json_schema (as text or mapping), regex and choice constrain the output; at most one of them.
    logprobs, prompt_logprobs: alternatives at each position. truncation: which end of an over-long prompt stays.
    on_deadline "partial": what there is comes back shortly before `timeout_s` passes, with finish reason DEADLINE.
    """

    adapter: str | None
    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    include_stop_in_output: bool
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    choice: Sequence[str] | None
    n: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    truncation: Truncation | None
    on_deadline: OnDeadline


class StreamOptions(GenerationOptions, total=False):
    """Options of `stream`: those of GenerationOptions, and when a chunk leaves (StreamOptions in inference_service.proto)."""

    min_chunk_interval_s: float | None
    min_chunk_tokens: int | None


class GenerateOptions(GenerationOptions, total=False):
    """Options of `generate`: those of GenerationOptions, and beam search where `beam_width` is given."""

    beam_width: int | None
    length_penalty: float | None
    num_return: int | None


class ScoreOptions(ModelCallOptions, total=False):
    """Options of `score`. truncation "keep_end": what does not fit is cut off the start of contexts."""

    adapter: str | None
    truncation: Literal["keep_end"] | None


class EmbedOptions(ModelCallOptions, total=False):
    """Options of `embed`. pooling: absent, the model's default. normalize: to Euclidean length 1; absent, true.

    layer: that the embedding pool must be set up with.
    """

    layer: int | None
    pooling: Pooling | Literal["last", "mean"] | None
    normalize: bool | None
    truncation: Truncation | None


class JobOptions(TypedDict, total=False):
    """Options of `create_job` (RowsWork in batch_service.proto).

    request_id: sent again, it finds the job that it made; made by the client where absent. timeout_s: of the call that creates the job.
    options: of rows that do not set them. rejects: file that takes rows that cannot be used. concurrency: requests in flight.
    max_stall_s: without a row settled until the job fails. into: vector database that gets an embed job's vectors too. own_engine: the job
    starts an engine for itself.
    """

    request_id: str | None
    timeout_s: float | None
    options: Mapping[str, Any] | None
    rejects: str | None
    concurrency: int | None
    max_stall_s: float | None
    into: str | None
    own_engine: bool | None


class QuantizeOptions(TypedDict, total=False):
    """Options of `create_quantization` (QuantizeWork in batch_service.proto, which has their defaults).

    request_id, timeout_s: as in JobOptions.
    """

    request_id: str | None
    timeout_s: float | None
    sequences: int | None
    sequence_tokens: int | None
    held_out_tokens: int | None
    serve_tokens: int | None


class EvaluateOptions(TypedDict, total=False):
    """Options of `create_evaluation` (EvaluateWork in batch_service.proto). request_id, timeout_s: as in JobOptions."""

    request_id: str | None
    timeout_s: float | None
    adapter: str | None
    shots: int | None
    limit: int | None
    concurrency: int | None


class FinetuneOptions(TypedDict, total=False):
    """Options of `create_finetune` (FinetuneWork in batch_service.proto, which has their defaults).

    request_id, timeout_s: as in JobOptions. rejects: file that takes examples that cannot be used.
    """

    request_id: str | None
    timeout_s: float | None
    rejects: str | None
    rank: int | None
    alpha: float | None
    targets: Sequence[str] | None
    epochs: int | None
    learning_rate: float | None
    batch_tokens: int | None
    evaluation_fraction: float | None
    early_stop_epochs: int | None
    seed: int | None
    workers: int | None
