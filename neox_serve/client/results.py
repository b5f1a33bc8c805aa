"""What the client returns: frozen values, with the core's vocabulary where it has the word."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neox_serve.core.jobs.job import JobState
from neox_serve.core.types import Finish, ModelLimits, Pool, Pooling, PositionLogprobs, TokenIds, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. cached: prompt tokens found in the prefix cache. truncated: dropped from prompts on request."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    truncated_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, measured in the gateway from the call's arrival. first_token_s: None for embeddings."""

    tokenization_s: float
    admission_s: float
    first_token_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion. score: beam search only, log-probability over length ** length_penalty."""

    index: int
    text: str
    token_ids: TokenIds
    finish: Finish
    logprobs: tuple[PositionLogprobs, ...] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a generation would take. cost: in prompt tokens, as fair sharing counts. expected_wait_s: None where it is not known.

    quota_left: by quota, for those that there are, what may still be reserved. fits_quota: whether it would be let run now.
    """

    prompt_tokens: int
    max_completion_tokens: int
    cost: float
    expected_wait_s: float | None
    quota_left: Mapping[str, int]
    fits_quota: bool


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The completions of one prompt, by index (beams: best first)."""

    completions: tuple[Completion, ...]
    prompt_logprobs: tuple[PositionLogprobs, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """The first completion's text."""
        return self.completions[0].text


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """One result a prompt, in the order of the prompts."""

    request_id: str
    model: str
    seed: int | None
    results: tuple[PromptResult, ...]
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The first completion of the only prompt. Raises ValueError where there were several prompts."""
        (only,) = self.results
        return only.text

    @property
    def texts(self) -> tuple[str, ...]:
        """Each prompt's first completion."""
        return tuple(result.text for result in self.results)


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """New tokens of completion `index`. The texts of a completion's chunks, joined, are its text; none splits a character."""

    index: int
    text: str
    token_ids: TokenIds
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamFinal:
    """The last event of a stream. finishes: one a completion, by index."""

    request_id: str
    model: str
    seed: int | None
    finishes: tuple[Finish, ...]
    prompt_logprobs: tuple[PositionLogprobs, ...]
    usage: Usage
    timings: Timings


StreamEvent = StreamChunk | StreamFinal


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is. log_likelihood: natural logarithm, over all its tokens. is_greedy: greedy generation would give it."""

    log_likelihood: float
    is_greedy: bool
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One score an item, in the order of the items."""

    request_id: str
    model: str
    scores: tuple[Score, ...]
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """One vector an input: `vectors` is float32 [inputs, dimensions]; prompt_tokens are those that went into each."""

    request_id: str
    model: str
    vectors: "NDArray[np.float32]" = field(compare=False)
    prompt_tokens: tuple[int, ...]
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text's tokens; offsets, where asked for, are (start, end) in code points of the text."""

    token_ids: TokenIds
    offsets: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingFacts:
    """The vectors a model gives. layer: whose output they are, the first being 1. final_layer_norm: applied to it."""

    dimensions: int
    default_pooling: Pooling
    layer: int
    final_layer_norm: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. capabilities: of generate, embed, structured_output, beam_search, adapters."""

    name: str
    source: str
    revision: str
    capabilities: frozenset[str]
    limits: ModelLimits
    adapters: tuple[str, ...]
    embedding: EmbeddingFacts | None
    ready_generation_replicas: int
    ready_embedding_replicas: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Sums over the replicas of a pool. wanted_replicas: None where its size is fixed. scaling_alarm: the policy fails."""

    pool: Pool
    ready_replicas: int
    requests_in_flight: int
    outstanding_tokens: int
    draining_replicas: int = 0
    wanted_replicas: int | None = None
    scaling_reason: str = ""
    scaling_alarm: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One engine replica. state: ready, draining, unhealthy or lost. age_s: since it registered."""

    replica_id: str
    pool: Pool
    model: str
    state: str
    running_requests: int
    waiting_requests: int
    outstanding_tokens: int
    kv_usage_fraction: float
    output_tokens_per_second: float
    age_s: float


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway process. age_s: since it registered."""

    gateway_id: str
    requests_in_flight: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Condition:
    """What keeps the cluster from its full service: a stable upper-case reason, and a message for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """What a tenant has at the replicas and in the queue. served: weighted, as fair sharing counts."""

    tenant: str
    running_requests: int
    running_tokens: int
    waiting_requests: int
    waiting_tokens: int
    served: float


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as the gateway `gateway_id` sees it."""

    version: str
    gateway_id: str
    pools: tuple[PoolStatus, ...]
    replicas: tuple[ReplicaStatus, ...]
    gateways: tuple[GatewayStatus, ...]
    conditions: tuple[Condition, ...]
    tenants: tuple[TenantStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLog:
    """The end of what a job's last run has written. start: characters before it. run_id: empty where there is no log yet."""

    text: str
    start: int
    run_id: str


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job. kind: generate, embed, finetune, quantize or evaluate. message: why it failed or was cancelled.

    input, output: files; of finetune the output is the adapter, as it is served, of evaluate the input is the tasks, of
    quantize the calibration text. total_rows: 0 until they are counted; of finetune examples of all epochs, of evaluate questions, of
    quantize matrices. tokens: that the run took that goes on. runs: processes
    that have worked on it. Times are seconds since the epoch, None: not yet.
    """

    job_id: str
    request_id: str
    kind: str
    state: JobState
    input: str
    output: str
    total_rows: int
    completed_rows: int
    error_rows: int
    tokens: int
    message: str
    cancel_requested: bool
    runs: int
    run_id: str
    created_s: float
    started_s: float | None
    ended_s: float | None


@dataclass(frozen=True, slots=True)
class BatchJobs:
    """A page of jobs, the newest first. next_page_token: empty where there are no more."""

    jobs: tuple[BatchJob, ...]
    next_page_token: str
