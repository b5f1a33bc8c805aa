"""The vocabulary of the product: what is asked of an engine and what it answers.

Values here have been validated: `__post_init__` states the invariants that every part may rely on, and a violation is a bug of ours
(ValueError), not bad input. Bad input is caught in `neox_serve.gateway.requests.validation`, with an error that names the field.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from neox_serve.core.errors import ServeError
from neox_serve.core.str_enum import StrEnum

TokenIds = tuple[int, ...]


class Pool(StrEnum):
    """What a group of replicas does."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


class Pooling(StrEnum):
    """How token vectors become one vector."""

    LAST = "last"
    MEAN = "mean"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. temperature 0 is greedy, top_k 0 keeps all, penalties of 1 / 0 / 0 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a sequence ends."""

    max_tokens: int
    min_tokens: int = 0
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: TokenIds = ()
    ignore_eos: bool = False
    include_stop_in_output: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"max_tokens {self.max_tokens}, min_tokens {self.min_tokens}")


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """Output is JSON text of this schema."""

    schema: str


@dataclass(frozen=True, slots=True)
class Regex:
    """Output matches this pattern as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Output is exactly one of these texts."""

    texts: tuple[str, ...]


StructuredOutput = JsonSchema | Regex | Choice


@dataclass(frozen=True, slots=True)
class Beam:
    """Beam search: `width` beams kept, the best `num_return` returned, scored by log-probability / length ** length_penalty."""

    width: int
    length_penalty: float = 1.0
    num_return: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.num_return <= self.width:
            raise ValueError(f"num_return {self.num_return}, width {self.width}")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for an engine. logprobs / prompt_logprobs: alternatives per position, None for none at all.

    cache_salt: only prompts with the same one share what the engine's prefix cache holds. session: for the choice of the replica alone.
    traceparent: W3C's text, empty where nothing is traced. tokens_per_delta: how many of a sequence an engine may gather before it tells
    them, but for the first and the last: few, where somebody reads along; many, where nobody does, since each delta costs.
    """

    request_id: str
    prompt_token_ids: TokenIds
    stopping: Stopping
    sampling: Sampling = Sampling()
    structured_output: StructuredOutput | None = None
    beam: Beam | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    adapter: str | None = None
    cache_salt: str | None = None
    session: str = ""
    traceparent: str = ""
    tokens_per_delta: int = 1

    def __post_init__(self) -> None:
        if not self.prompt_token_ids or self.n < 1 or self.tokens_per_delta < 1:
            raise ValueError(f"{len(self.prompt_token_ids)} prompt tokens, n {self.n}, {self.tokens_per_delta} tokens per delta")

    @property
    def max_output_tokens(self) -> int:
        """The most tokens the request can generate, over all its sequences."""
        return self.stopping.max_tokens * (self.beam.width if self.beam else self.n)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One input for an embedding engine. cache_salt, traceparent: as in a generation request."""

    request_id: str
    prompt_token_ids: TokenIds
    pooling: Pooling
    normalize: bool = True
    cache_salt: str | None = None
    traceparent: str = ""

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError("no prompt tokens")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability; rank 1 is the most likely. text: the token alone, U+FFFD for partial characters."""

    token_id: int
    logprob: float
    rank: int
    text: str


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token at a position and the most likely alternatives there, most likely first."""

    token: TokenLogprob
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended; `stop` is the stop sequence or stop token id that matched, if any did (None: the end-of-text token)."""

    reason: FinishReason
    stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """New tokens of one sequence. Texts joined give the whole text; no text splits a character. score: beam search only."""

    index: int
    text: str
    token_ids: TokenIds
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish: Finish | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """What the engine found out about a prompt. logprobs: one a prompt token but the first, if asked for."""

    cached_tokens: int = 0
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one request. prompt: once, in the first delta. end: in the last delta; then `failure` says whether it ended badly."""

    key: Hashable
    sequences: tuple[SequenceDelta, ...] = ()
    prompt: PromptFacts | None = None
    end: bool = False
    failure: ServeError | None = None


DeltaSink = Callable[[Sequence[Delta]], None]
"""Takes all deltas that one engine step brought for it. Must not block; called on the engine's event loop."""

DirectSink = Callable[[Delta], bool]
"""Takes a delta in the turn of the loop in which it came, where it can: True. Waking its reader's task instead costs a fifth of a token's
way through a gateway."""


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """A vector: little-endian float32, `len(values) // 4` dimensions. admission_s: how long the request waited for `replica_id`."""

    values: bytes
    cached_tokens: int = 0
    admission_s: float = 0.0
    replica_id: str = ""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The most that one request may ask. All counts; request_bytes is the size of one request message."""

    max_model_len: int
    vocabulary_size: int
    prompts_per_request: int = 64
    n: int = 16
    beam_width: int = 8
    logprobs: int = 20
    stop_sequences: int = 16
    stop_token_ids: int = 128
    request_bytes: int = 1_572_864


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Load of an engine now. output_tokens_total counts since the start. adapters: those that it has loaded.

    prefill_backlog_tokens: prompt tokens of requests without an output yet; what the prefix cache spares of them is not known before.
    """

    running_requests: int
    waiting_requests: int
    kv_usage_fraction: float
    output_tokens_total: int
    adapters: frozenset[str] = frozenset()
    prefill_backlog_tokens: int = 0
