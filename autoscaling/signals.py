"""What a policy sees and what it is asked for: plain values of one pool. Standard library only: Ray's controller may import it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BULK = "bulk"
"""The priority class that fills idle capacity and never asks for more of it."""


@dataclass(frozen=True, slots=True)
class ClassDemand:
    """What one priority class asks of a pool. Rates are means over the time since the signals before.

    waiting_tokens: prompt tokens and those expected to be generated, of requests that wait for a replica. arrived_output_tokens_per_s:
    tokens that the requests which came are expected to generate.
    """

    waiting_requests: float = 0.0
    waiting_tokens: float = 0.0
    arrived_requests_per_s: float = 0.0
    arrived_input_tokens_per_s: float = 0.0
    arrived_output_tokens_per_s: float = 0.0

    def plus(self, other: "ClassDemand") -> "ClassDemand":
        """Both together."""
        return ClassDemand(
            self.waiting_requests + other.waiting_requests,
            self.waiting_tokens + other.waiting_tokens,
            self.arrived_requests_per_s + other.arrived_requests_per_s,
            self.arrived_input_tokens_per_s + other.arrived_input_tokens_per_s,
            self.arrived_output_tokens_per_s + other.arrived_output_tokens_per_s,
        )


@dataclass(frozen=True, slots=True)
class PoolSignals:
    """One pool at one moment.

    running_requests, running_tokens: dispatched and not ended, and the tokens that they hold in KV caches. prefill_backlog_tokens: prompt
    tokens that replicas have been given and not computed. kv_usage_fraction: mean over ready replicas. ttft_attainment_fraction,
    tpot_attainment_fraction: of requests that lately had their first or last token, those within the target; None where there were none.
    startup_s: from asking for a replica until it was ready, as last measured; None before the first.
    """

    ready_replicas: int = 0
    starting_replicas: int = 0
    draining_replicas: int = 0
    by_class: Mapping[str, ClassDemand] = field(default_factory=dict)
    running_requests: float = 0.0
    running_tokens: float = 0.0
    prefill_backlog_tokens: float = 0.0
    kv_usage_fraction: float = 0.0
    ttft_attainment_fraction: float | None = None
    tpot_attainment_fraction: float | None = None
    ttft_mean_s: float | None = None
    tpot_mean_s: float | None = None
    startup_s: float | None = None

    @property
    def replicas(self) -> int:
        """Ready or on their way to be."""
        return self.ready_replicas + self.starting_replicas

    @property
    def waiting_requests(self) -> float:
        """Of all classes."""
        return sum(demand.waiting_requests for demand in self.by_class.values())

    @property
    def requests(self) -> float:
        """Running or waiting, of all classes."""
        return self.running_requests + self.waiting_requests

    @property
    def urgent(self) -> ClassDemand:
        """The demand of all classes but BULK."""
        total = ClassDemand()
        for name, demand in self.by_class.items():
            if name != BULK:
                total = total.plus(demand)
        return total


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica can do. A step takes fixed_s, and more for each sequence that it decodes, for each token that these have in the KV
    cache, and for each prompt token that it computes.

    kv_tokens: that its cache holds. max_requests: that it takes at a time. step_tokens: most prompt tokens that one step computes.
    Source: the form of a decoder's step, bound by weight bandwidth, KV bandwidth and, for prompts, arithmetic (model.step_time).
    """

    fixed_s: float
    per_sequence_s: float
    per_resident_token_s: float
    per_prompt_token_s: float
    kv_tokens: int
    max_requests: int
    step_tokens: int = 512

    def __post_init__(self) -> None:
        times = (self.fixed_s, self.per_sequence_s, self.per_resident_token_s, self.per_prompt_token_s)
        if min(times) < 0 or self.fixed_s == 0:
            raise ValueError(f"step times {times}: must not be negative, and fixed_s must be positive")
        if min(self.kv_tokens, self.max_requests, self.step_tokens) < 1:
            raise ValueError(f"kv_tokens {self.kv_tokens}, max_requests {self.max_requests}, step_tokens {self.step_tokens}: at least 1")

    def request_work_s(self, input_tokens: float, output_tokens: float) -> float:
        """What a request adds to the time of all steps that it takes part in; fixed_s, which all share, is not in it.

        Its prompt once, and for each token generated its place in the batch and the KV that is read for it, which grows from the prompt's
        length to the whole.
        """
        resident = input_tokens + output_tokens / 2
        return self.per_prompt_token_s * input_tokens + output_tokens * (self.per_sequence_s + self.per_resident_token_s * resident)

    def replicas_of_request(self, input_tokens: float, output_tokens: float, tpot_s: float) -> float:
        """Replicas that one such request a second keeps busy, at the pace that suits it best, tpot_s at the slowest. The tightest of:

        * decoding: a step takes the pace's time, fixed_s of which goes to the weights; the rest is for what requests add;
        * room: while they are written, which a faster pace makes shorter, answers hold KV and a place each;
        * prompts: each step_tokens of them are a step, with its fixed_s.
        """
        if tpot_s <= self.fixed_s:
            return float("inf")
        work_s = self.request_work_s(input_tokens, output_tokens)
        room = output_tokens * max((input_tokens + output_tokens / 2) / self.kv_tokens, 1 / self.max_requests)
        # Where both are equally tight: work / (1 - fixed / pace) = room * pace.
        pace_s = min(tpot_s, self.fixed_s + work_s / room) if room else tpot_s
        prompts = work_s + self.fixed_s * input_tokens / self.step_tokens
        return max(work_s / (1 - self.fixed_s / pace_s), prompts)

    def replicas_of_prompt(self, input_tokens: float, output_tokens: float, tpot_s: float) -> float:
        """Of replicas_of_request, what the prompt takes, which is wanted at once; the rest is spread over the time of writing."""
        whole = self.replicas_of_request(input_tokens, output_tokens, tpot_s)
        share = 1 - self.fixed_s / tpot_s
        return min(whole, self.per_prompt_token_s * input_tokens / share) if share > 0 else whole


@dataclass(frozen=True, slots=True)
class Targets:
    """Service levels. attainment_fraction: of requests that must have their first token within ttft_s, the others within tpot_s each."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1
    attainment_fraction: float = 0.99

    def __post_init__(self) -> None:
        if self.ttft_s <= 0 or self.tpot_s <= 0 or not 0 < self.attainment_fraction < 1:
            raise ValueError(f"targets {self}: times must be positive, attainment_fraction between 0 and 1")


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What the operator wants of a pool, and what its replicas are.

    startup_s: expected until one has been measured. gpus_per_replica: what a replica takes of a shared budget.
    """

    min_replicas: int
    max_replicas: int
    capacity: Capacity
    targets: Targets = Targets()
    startup_s: float = 60.0
    gpus_per_replica: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(f"replicas must satisfy 0 <= min <= max and max >= 1, got {self.min_replicas}, {self.max_replicas}")

    def bounded(self, replicas: int) -> int:
        """The nearest count that is allowed."""
        return max(self.min_replicas, min(self.max_replicas, replicas))
