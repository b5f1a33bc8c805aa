"""What the client returns: frozen values, with the types of `neox_serve.core` where these have the same meaning."""

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
    """The tokens of one call or one prompt."""

    prompt_tokens: int
    """Tokens of the prompts, including cached ones."""
    cached_tokens: int
    """Prompt tokens whose KV blocks were in the prefix cache."""
    completion_tokens: int
    """Generated tokens."""
    truncated_tokens: int
    """Tokens cut off prompts that were too long; see the option `truncation`."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations in seconds, measured in the gateway."""

    tokenization_s: float
    """Time spent on tokenizing the prompts."""
    admission_s: float
    """Time until the router admitted the request, including the queue; the longest of several prompts."""
    first_token_s: float | None
    """Time from the call's arrival to the first token; None if no token was generated."""
    total_s: float
    """Time from the call's arrival to its end."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion of a prompt."""

    index: int
    """Position among the completions of its prompt."""
    text: str
    token_ids: TokenIds
    finish: Finish
    """Why generation ended."""
    logprobs: tuple[PositionLogprobs, ...] = ()
    """One entry per token, if log-probabilities were requested."""
    score: float | None = None
    """The log-probability divided by length ** length_penalty; None without beam search."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a generation would take."""

    prompt_tokens: int
    max_completion_tokens: int
    """Upper bound of the generated tokens, over all prompts and completions."""
    cost: float
    """Cost in fair sharing: prompt tokens plus twice the completion tokens."""
    expected_wait_s: float | None
    """Seconds in the queue; None if this is not known."""
    quota_left: Mapping[str, int]
    """What the tenant may still reserve of each of its quotas."""
    fits_quota: bool
    """Whether the quotas would admit the request now."""


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The completions of one prompt."""

    completions: tuple[Completion, ...]
    """Ordered by index; with beam search, the best one comes first."""
    prompt_logprobs: tuple[PositionLogprobs, ...]
    """One entry per prompt token, if requested."""
    usage: Usage

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.completions[0].text


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The result of `generate`."""

    request_id: str
    model: str
    seed: int | None
    """The seed of the request; None if it had none."""
    results: tuple[PromptResult, ...]
    """One per prompt, in the order of the prompts."""
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The first completion of the only prompt. Raises ValueError if there were several prompts."""
        (only,) = self.results
        return only.text

    @property
    def texts(self) -> tuple[str, ...]:
        """The first completion of each prompt."""
        return tuple(result.text for result in self.results)


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """New tokens of one completion. The chunk texts of a completion, joined, are its text. No chunk splits a character."""

    index: int
    """Which completion of the prompt the tokens belong to."""
    text: str
    token_ids: TokenIds
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamFinal:
    """The last event of a stream."""

    request_id: str
    model: str
    seed: int | None
    """The seed of the request; None if it had none."""
    finishes: tuple[Finish, ...]
    """Why each completion ended, ordered by index."""
    prompt_logprobs: tuple[PositionLogprobs, ...]
    usage: Usage
    timings: Timings


StreamEvent = StreamChunk | StreamFinal


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is after its context."""

    log_likelihood: float
    """Natural logarithm of the probability of all its tokens."""
    is_greedy: bool
    """Whether greedy decoding would generate exactly this continuation."""
    tokens: tuple[TokenLogprob, ...]
    """The continuation's tokens."""


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The result of `score`."""

    request_id: str
    model: str
    scores: tuple[Score, ...]
    """One per item, in the order of the items."""
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The result of `embed`."""

    request_id: str
    model: str
    vectors: "NDArray[np.float32]" = field(compare=False)
    """Shape [inputs, dimensions]."""
    prompt_tokens: tuple[int, ...]
    """Tokens of each input that were embedded."""
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of one text."""

    token_ids: TokenIds
    offsets: tuple[tuple[int, int], ...] = ()
    """For each token, where it starts and ends in the text, in code points; empty unless requested."""


@dataclass(frozen=True, slots=True)
class EmbeddingFacts:
    """The vectors that a model gives."""

    dimensions: int
    default_pooling: Pooling
    layer: int
    """The layer whose output is pooled; the first is 1."""
    final_layer_norm: bool
    """Whether the model's final layer norm is applied to that output."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served."""

    name: str
    source: str
    """The checkpoint: a repository name or a path."""
    revision: str
    """The revision of the repository; empty if none is set."""
    capabilities: frozenset[str]
    """Some of generate, embed, structured_output, beam_search and adapters."""
    limits: ModelLimits
    adapters: tuple[str, ...]
    """Names of the LoRA adapters that requests may use."""
    embedding: EmbeddingFacts | None
    """None if the model is not served for embeddings."""
    ready_generation_replicas: int
    ready_embedding_replicas: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Totals over the replicas of a pool."""

    pool: Pool
    ready_replicas: int
    requests_in_flight: int
    outstanding_tokens: int
    """Tokens that are still to be read and generated for the requests in flight."""
    draining_replicas: int = 0
    wanted_replicas: int | None = None
    """The size that autoscaling aims for; None if the size is fixed."""
    scaling_reason: str = ""
    """Why autoscaling aims for this size."""
    scaling_alarm: bool = False
    """Whether the scaling policy fails."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One engine replica."""

    replica_id: str
    pool: Pool
    model: str
    state: str
    """ready, draining, unhealthy or lost."""
    running_requests: int
    waiting_requests: int
    """Requests in the engine's own queue."""
    outstanding_tokens: int
    kv_usage_fraction: float
    """Share of the KV blocks in use, 0 to 1."""
    output_tokens_per_second: float
    age_s: float
    """Seconds since the replica registered."""


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway process."""

    gateway_id: str
    requests_in_flight: int
    age_s: float
    """Seconds since the gateway registered."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that keeps the cluster from full service."""

    reason: str
    """A stable identifier in upper case."""
    message: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """What a tenant has at the replicas and in the queue."""

    tenant: str
    running_requests: int
    running_tokens: int
    waiting_requests: int
    waiting_tokens: int
    served: float
    """Service received so far, divided by the tenant's weight. Fair sharing serves the tenant with the lowest value next."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as one gateway sees it."""

    version: str
    gateway_id: str
    """The gateway that answered."""
    pools: tuple[PoolStatus, ...]
    replicas: tuple[ReplicaStatus, ...]
    gateways: tuple[GatewayStatus, ...]
    conditions: tuple[Condition, ...]
    tenants: tuple[TenantStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLog:
    """The end of the log of a job's last run."""

    text: str
    start: int
    """Characters of the log before `text`."""
    run_id: str
    """The run that wrote it; empty if there is no log yet."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job. Times are seconds since the epoch."""

    job_id: str
    request_id: str
    """The idempotency key that the job was created with."""
    kind: str
    """generate, embed, finetune, quantize or evaluate."""
    state: JobState
    input: str
    """The input file; for evaluate the tasks, for quantize the calibration text."""
    output: str
    """The output file; for finetune the name under which the adapter is served."""
    total_rows: int
    """Rows to process, 0 until they are counted. For finetune: examples of all epochs; evaluate: questions; quantize: matrices."""
    completed_rows: int
    """Rows that have a result or an error."""
    error_rows: int
    """Completed rows that have an error."""
    tokens: int
    """Tokens that the current run has processed."""
    message: str
    """Why the job failed, was cancelled or is waiting."""
    cancel_requested: bool
    runs: int
    """Processes that have worked on the job."""
    run_id: str
    """The last of these processes; empty before the first."""
    created_s: float
    started_s: float | None
    """None before the first run."""
    ended_s: float | None
    """None until the job has ended."""


@dataclass(frozen=True, slots=True)
class BatchJobs:
    """A page of jobs."""

    jobs: tuple[BatchJob, ...]
    """Newest first."""
    next_page_token: str
    """Pass it to `jobs` for the next page; empty on the last one."""
