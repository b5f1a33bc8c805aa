"""The types that all parts share: requests to an engine and what the engine returns.

Values of these types have been validated. `__post_init__` checks the invariants that every part may rely on; a violation raises ValueError
and is a bug in our code, not bad input. Bad input is rejected earlier, by `neox_serve.gateway.requests.validation`, with an error that
names the field.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from neox_serve.core.errors import ServeError
from neox_serve.core.str_enum import StrEnum

TokenIds = tuple[int, ...]


class Pool(StrEnum):
    """A group of replicas that do the same kind of work."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


class Pooling(StrEnum):
    """How the hidden states of a prompt's tokens become one embedding vector."""

    LAST = "last"
    MEAN = "mean"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """End of text, a stop sequence or a stop token, or the end of the structured output."""
    LENGTH = "length"
    """`max_tokens` was reached."""
    DEADLINE = "deadline"
    """The deadline passed and the caller had asked for partial output."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled. The names and the meanings are vLLM's."""

    temperature: float = 1.0
    """0 selects greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """1 disables it."""
    presence_penalty: float = 0.0
    """0 disables it."""
    frequency_penalty: float = 0.0
    """0 disables it."""
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to the value that is added to its logit."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a sequence ends."""

    max_tokens: int
    """Maximum number of generated tokens, at least 1."""
    min_tokens: int = 0
    """Number of tokens to generate before an end-of-text or stop token may end the sequence."""
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: TokenIds = ()
    ignore_eos: bool = False
    """Continue after the end-of-text token."""
    include_stop_in_output: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"max_tokens {self.max_tokens}, min_tokens {self.min_tokens}")


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The output is JSON text that is valid under this schema."""

    schema: str


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole output matches this pattern."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The output is exactly one of these texts."""

    texts: tuple[str, ...]


StructuredOutput = JsonSchema | Regex | Choice


@dataclass(frozen=True, slots=True)
class Beam:
    """Beam search. Beams are scored by log-probability / length ** length_penalty."""

    width: int
    """Number of beams that the search keeps."""
    length_penalty: float = 1.0
    num_return: int = 1
    """Number of beams that are returned, at most `width`."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_return <= self.width:
            raise ValueError(f"num_return {self.num_return}, width {self.width}")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for a generation engine."""

    request_id: str
    prompt_token_ids: TokenIds
    """At least one token."""
    stopping: Stopping
    sampling: Sampling = Sampling()
    structured_output: StructuredOutput | None = None
    beam: Beam | None = None
    """Beam search instead of sampling."""
    n: int = 1
    """Number of sequences to generate."""
    logprobs: int | None = None
    """Number of alternatives to report for each generated position; None reports no log-probabilities."""
    prompt_logprobs: int | None = None
    """The same for the positions of the prompt."""
    adapter: str | None = None
    """Name of the LoRA adapter."""
    cache_salt: str | None = None
    """Prompts share prefix cache blocks only if they have the same salt."""
    session: str = ""
    """Session key of the caller. Only routing uses it."""
    traceparent: str = ""
    """W3C trace context; empty if the request is not traced."""
    tokens_per_delta: int = 1
    """Number of a sequence's tokens that the engine may collect before it reports them. It reports the first and the last at once.

    Small if someone reads along; large if not, because every delta has a cost.
    """

    def __post_init__(self) -> None:
        if not self.prompt_token_ids or self.n < 1 or self.tokens_per_delta < 1:
            raise ValueError(f"{len(self.prompt_token_ids)} prompt tokens, n {self.n}, {self.tokens_per_delta} tokens per delta")

    @property
    def max_output_tokens(self) -> int:
        """Maximum number of tokens that the request can generate, summed over its sequences."""
        return self.stopping.max_tokens * (self.beam.width if self.beam else self.n)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One input for an embedding engine."""

    request_id: str
    prompt_token_ids: TokenIds
    """At least one token."""
    pooling: Pooling
    normalize: bool = True
    """Scale the vector to length 1."""
    cache_salt: str | None = None
    """As in GenerationRequest."""
    traceparent: str = ""
    """As in GenerationRequest."""

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError("no prompt tokens")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its log-probability."""

    token_id: int
    logprob: float
    """Natural logarithm of the probability."""
    rank: int
    """1 for the most likely token."""
    text: str
    """The text of this token by itself, with U+FFFD for incomplete characters."""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token at a position and the most likely alternatives."""

    token: TokenLogprob
    alternatives: tuple[TokenLogprob, ...] = ()
    """Most likely first."""


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended."""

    reason: FinishReason
    stop: str | int | None = None
    """The stop sequence or the stop token id that matched; None for the end-of-text token and for other reasons."""


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """New tokens of one sequence."""

    index: int
    """Index of the sequence in its request, from 0."""
    text: str
    """New text. The texts of all deltas, joined, are the whole output; a delta never ends within a character."""
    token_ids: TokenIds
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish: Finish | None = None
    """Set in the last delta of the sequence."""
    score: float | None = None
    """Score of the beam. Only beam search sets it."""


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """What the engine reports about a prompt."""

    cached_tokens: int = 0
    """Prompt tokens whose KV blocks were found in the prefix cache."""
    logprobs: tuple[PositionLogprobs, ...] = ()
    """One entry for each prompt token except the first, if the request asked for them."""


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of one request."""

    key: Hashable
    """The key under which the request was submitted."""
    sequences: tuple[SequenceDelta, ...] = ()
    prompt: PromptFacts | None = None
    """Set once, in the first delta."""
    end: bool = False
    """Whether this is the last delta of the request."""
    failure: ServeError | None = None
    """Set in the last delta if the request failed."""


DeltaSink = Callable[[Sequence[Delta]], None]
"""Receives all deltas of one engine step. It is called on the engine's event loop and must not block."""

DirectSink = Callable[[Delta], bool]
"""Handles a delta within the event loop iteration in which it arrived. Returns False if it cannot.

Waking a separate reader task instead takes a fifth of the time that a token spends in a gateway.
"""


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """An embedding vector."""

    values: bytes
    """Little-endian float32 values, `len(values) // 4` of them."""
    cached_tokens: int = 0
    admission_s: float = 0.0
    """How long the request waited for a replica."""
    replica_id: str = ""
    """The replica that computed the vector."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Maximum values for one request."""

    max_model_len: int
    """Context length: prompt plus output tokens."""
    vocabulary_size: int
    prompts_per_request: int = 64
    n: int = 16
    beam_width: int = 8
    logprobs: int = 20
    stop_sequences: int = 16
    stop_token_ids: int = 128
    request_bytes: int = 1_572_864
    """Size of one request message."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Current load of an engine."""

    running_requests: int
    waiting_requests: int
    kv_usage_fraction: float
    """Part of the KV cache blocks in use, 0 to 1."""
    output_tokens_total: int
    """Tokens generated since the engine started."""
    adapters: frozenset[str] = frozenset()
    """Names of the adapters that are loaded."""
    prefill_backlog_tokens: int = 0
    """Prompt tokens of requests that have no output yet. It includes tokens that the prefix cache may turn out to hold."""
