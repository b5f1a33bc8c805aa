"""The options of the client's methods. All are optional: None and absence mean the server's default.

The server checks ranges; its error names the field that is wrong. Ranges and defaults are in protos/neox_serve/v1, for example in
GenerationParameters of generation.proto.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from neox_serve.core.types import Pooling

Chat = Sequence[Mapping[str, str]]
"""Messages of the form {"role": "system", "user" or "assistant", "content": text}. `generate`, `stream` and `estimate` take them."""
Prompt = str | Sequence[int] | Chat
"""A text, token ids of the served model's vocabulary, or chat messages."""

Truncation = Literal["keep_end", "keep_start"]
OnDeadline = Literal["error", "partial"]
Priority = Literal["system", "interactive", "default", "bulk"]


class CallOptions(TypedDict, total=False):
    """Options of every call."""

    request_id: str | None
    """1 to 128 characters of [A-Za-z0-9._:-]. Absent: the client makes one."""
    timeout_s: float | None
    """Seconds until the call fails with DEADLINE_EXCEEDED, including all retries. Absent: no limit of the client's."""
    model: str | None
    """A name from `models()`. Absent: the model that is served."""


class ModelCallOptions(CallOptions, total=False):
    """Options of calls that run the model."""

    priority: Priority | None
    """The priority class to run in, at most the tenant's highest. Absent: the tenant's class."""


class GenerationOptions(ModelCallOptions, total=False):
    """Options of `generate`, `stream` and `estimate`."""

    adapter: str | None
    """Name of a LoRA adapter. Absent: the model itself."""
    max_tokens: int | None
    """Maximum number of tokens per completion."""
    min_tokens: int | None
    """Number of tokens before a stop condition applies."""
    temperature: float | None
    """0 is greedy decoding."""
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    """Makes sampling reproducible."""
    logit_bias: Mapping[int, float] | None
    """Added to the logits of these token ids."""
    stop: str | Sequence[str] | None
    """One or several texts that end a completion."""
    stop_token_ids: Sequence[int] | None
    """Token ids that end a completion."""
    ignore_eos: bool
    """Continue past the end-of-text token."""
    include_stop_in_output: bool
    """Keep the stop text that matched in the output."""
    json_schema: str | Mapping[str, Any] | None
    """A JSON Schema, as JSON text or as a mapping, that the output follows. At most one of json_schema, regex and choice may be given."""
    regex: str | None
    """A regular expression that the whole output matches."""
    choice: Sequence[str] | None
    """Texts, one of which is the output."""
    n: int | None
    """Completions per prompt."""
    logprobs: int | None
    """Number of alternatives to return at each generated token, with their log-probabilities."""
    prompt_logprobs: int | None
    """The same for each prompt token."""
    truncation: Truncation | None
    """Which end of a prompt to keep if the prompt is too long. Absent: such a prompt is an error."""
    on_deadline: OnDeadline | None
    """With "partial", the tokens generated so far are returned shortly before `timeout_s` has passed, with finish reason DEADLINE."""


class StreamOptions(GenerationOptions, total=False):
    """Options of `stream`."""

    min_chunk_interval_s: float | None
    """Minimum time between two chunks, in seconds."""
    min_chunk_tokens: int | None
    """Minimum number of tokens per chunk."""


class GenerateOptions(GenerationOptions, total=False):
    """Options of `generate` and `estimate`."""

    beam_width: int | None
    """Number of beams; turns beam search on."""
    length_penalty: float | None
    """Exponent of the length in a beam's score. Values above 1 favour long texts."""
    num_return: int | None
    """Number of beams to return."""


class ScoreOptions(ModelCallOptions, total=False):
    """Options of `score`."""

    adapter: str | None
    """Name of a LoRA adapter. Absent: the model itself."""
    truncation: Literal["keep_end"] | None
    """With "keep_end", the start of a context that is too long is cut off. Absent: such a context is an error."""


class EmbedOptions(ModelCallOptions, total=False):
    """Options of `embed`."""

    layer: int | None
    """The layer whose output is pooled. The embedding pool must be configured for it."""
    pooling: Pooling | Literal["last", "mean"] | None
    """Absent: the model's default."""
    normalize: bool | None
    """Scale vectors to Euclidean length 1. Absent: true."""
    truncation: Truncation | None
    """Which end of an input to keep if the input is too long. Absent: such an input is an error."""


class CreateJobOptions(TypedDict, total=False):
    """Options of every method that creates a batch job."""

    request_id: str | None
    """Idempotency key: the same key returns the job that it created. Absent: the client makes one."""
    timeout_s: float | None
    """Seconds until the call that creates the job fails with DEADLINE_EXCEEDED."""


class JobOptions(CreateJobOptions, total=False):
    """Options of `create_job` (RowsWork in batch_service.proto)."""

    options: Mapping[str, Any] | None
    """Options of the rows that do not set them."""
    rejects: str | None
    """File for rows that cannot be used. Absent: such a row fails the job."""
    concurrency: int | None
    """Maximum number of requests in flight."""
    max_stall_s: float | None
    """The job fails if no row completes for this many seconds."""
    into: str | None
    """Vector database that receives the vectors of an embed job as well."""
    own_engine: bool | None
    """Start an engine for this job instead of sending requests to the cluster's engines. Only operators may do so."""


class QuantizeOptions(CreateJobOptions, total=False):
    """Options of `create_quantization`. The defaults are in QuantizeWork of batch_service.proto."""

    sequences: int | None
    """Number of sequences taken from the calibration text."""
    sequence_tokens: int | None
    """Tokens per sequence."""
    held_out_tokens: int | None
    """Maximum number of tokens of the held-out text to evaluate on."""
    serve_tokens: int | None
    """Tokens that an engine generates with each checkpoint to compare them; 0: no engine is started."""


class EvaluateOptions(CreateJobOptions, total=False):
    """Options of `create_evaluation` (EvaluateWork in batch_service.proto)."""

    adapter: str | None
    """Name of a LoRA adapter. Absent: the model itself."""
    shots: int | None
    """Examples per prompt. Absent: each task's own number."""
    limit: int | None
    """Maximum number of questions per task; 0: all."""
    concurrency: int | None
    """Maximum number of requests in flight."""


class FinetuneOptions(CreateJobOptions, total=False):
    """Options of `create_finetune`. The defaults are in FinetuneWork of batch_service.proto."""

    rejects: str | None
    """File for examples that cannot be used. Absent: such an example fails the job."""
    rank: int | None
    """Rank of the LoRA matrices."""
    alpha: float | None
    """The product of the LoRA matrices is scaled by alpha / rank."""
    targets: Sequence[str] | None
    """The weight matrices that get LoRA matrices."""
    epochs: int | None
    """Maximum number of passes over the examples."""
    learning_rate: float | None
    """Peak learning rate."""
    batch_tokens: int | None
    """Approximate number of tokens per optimizer step."""
    evaluation_fraction: float | None
    """Fraction of the examples that are held out for evaluation."""
    early_stop_epochs: int | None
    """Stop after this many epochs without improvement of the evaluation loss; 0 disables early stopping."""
    seed: int | None
    """Seed of the order of the examples and of the initial LoRA weights."""
    workers: int | None
    """Number of training processes."""
