"""The inputs of a scaling policy: plain values that describe one pool. Standard library only, because Ray's controller may import it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BULK = "bulk"
"""The priority class that fills idle capacity and never causes a scale-up."""


@dataclass(frozen=True, slots=True)
class ClassDemand:
    """The demand of one priority class in one pool. Rates are means over the time since the previous signals."""

    waiting_requests: float = 0.0
    """Number of requests that wait for a replica."""
    waiting_tokens: float = 0.0
    """Prompt tokens plus expected output tokens of the requests that wait for a replica."""
    arrived_requests_per_s: float = 0.0
    """Requests that arrived, per second."""
    arrived_input_tokens_per_s: float = 0.0
    """Prompt tokens that arrived, per second."""
    arrived_output_tokens_per_s: float = 0.0
    """Output tokens that the arrived requests are expected to generate, per second of arrivals."""

    def plus(self, other: "ClassDemand") -> "ClassDemand":
        """Returns the sum of both demands."""
        return ClassDemand(
            self.waiting_requests + other.waiting_requests,
            self.waiting_tokens + other.waiting_tokens,
            self.arrived_requests_per_s + other.arrived_requests_per_s,
            self.arrived_input_tokens_per_s + other.arrived_input_tokens_per_s,
            self.arrived_output_tokens_per_s + other.arrived_output_tokens_per_s,
        )


@dataclass(frozen=True, slots=True)
class PoolSignals:
    """The state of one pool at one moment."""

    ready_replicas: int = 0
    """Replicas that accept requests."""
    starting_replicas: int = 0
    """Replicas that have been requested and are not ready yet."""
    draining_replicas: int = 0
    """Replicas that finish their requests before they stop."""
    by_class: Mapping[str, ClassDemand] = field(default_factory=dict)
    """Demand by the name of the priority class."""
    running_requests: float = 0.0
    """Requests that have been dispatched to a replica and have not ended."""
    running_tokens: float = 0.0
    """Tokens that the running requests hold in KV caches."""
    prefill_backlog_tokens: float = 0.0
    """Prompt tokens that replicas have received and not computed yet."""
    kv_usage_fraction: float = 0.0
    """Mean KV cache usage of the ready replicas."""
    ttft_attainment_fraction: float | None = None
    """Fraction of recent first tokens within the TTFT target; None if there were none."""
    tpot_attainment_fraction: float | None = None
    """Fraction of recently completed requests within the TPOT target; None if there were none."""
    ttft_mean_s: float | None = None
    """Mean time to first token of recent requests; None if there were none."""
    tpot_mean_s: float | None = None
    """Mean time per output token of recently completed requests; None if there were none."""
    startup_s: float | None = None
    """Last measured time from requesting a replica until it was ready; None before the first measurement."""

    @property
    def replicas(self) -> int:
        """Number of replicas that are ready or starting."""
        return self.ready_replicas + self.starting_replicas

    @property
    def waiting_requests(self) -> float:
        """Number of waiting requests of all classes."""
        return sum(demand.waiting_requests for demand in self.by_class.values())

    @property
    def requests(self) -> float:
        """Number of running and waiting requests of all classes."""
        return self.running_requests + self.waiting_requests

    @property
    def urgent(self) -> ClassDemand:
        """Total demand of all classes except BULK."""
        total = ClassDemand()
        for name, demand in self.by_class.items():
            if name != BULK:
                total = total.plus(demand)
        return total


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica can do: the terms of its step time, and its limits.

    The duration of an engine step is fixed_s, plus per_sequence_s for each decoding sequence, per_resident_token_s for each of their tokens
    in the KV cache, and per_prompt_token_s for each prompt token that the step computes.
    Source: the form of a decoder's step, which is bound by weight bandwidth, KV bandwidth and, for prompts, arithmetic (see
    model.step_time).
    """

    fixed_s: float
    """Duration of a step that does nothing but read the weights."""
    per_sequence_s: float
    """Additional time for each decoding sequence."""
    per_resident_token_s: float
    """Additional time for each token in the KV cache of a decoding sequence."""
    per_prompt_token_s: float
    """Additional time for each prompt token."""
    kv_tokens: int
    """Size of the KV cache in tokens."""
    max_requests: int
    """Maximum number of concurrent requests."""
    step_tokens: int = 512
    """Maximum number of prompt tokens in one step."""

    def __post_init__(self) -> None:
        times = (self.fixed_s, self.per_sequence_s, self.per_resident_token_s, self.per_prompt_token_s)
        if min(times) < 0 or self.fixed_s == 0:
            raise ValueError(f"step times {times} are invalid; none may be negative, and fixed_s must be positive")
        if min(self.kv_tokens, self.max_requests, self.step_tokens) < 1:
            raise ValueError(
                f"kv_tokens {self.kv_tokens}, max_requests {self.max_requests} and step_tokens {self.step_tokens} must be at least 1"
            )

    def request_work_s(self, input_tokens: float, output_tokens: float) -> float:
        """Returns the time that a request adds to all its steps together, in seconds. The shared fixed_s is not included.

        A request pays for its prompt once. For each output token it pays for its place in the batch and for reading its KV cache, which
        grows from the prompt's length to the total length.
        """
        resident = input_tokens + output_tokens / 2
        return self.per_prompt_token_s * input_tokens + output_tokens * (self.per_sequence_s + self.per_resident_token_s * resident)

    def replicas_of_request(self, input_tokens: float, output_tokens: float, tpot_s: float) -> float:
        """Returns the number of replicas that one such request per second keeps busy.

        The step time is chosen to suit the request best and is at most tpot_s. The result is the largest of three demands:

        * decoding: fixed_s of each step goes to the weights, and the rest is available for the requests;
        * memory: a request occupies KV cache and a place in the batch while its answer is generated, which takes less time with faster
          steps;
        * prefill: every step_tokens prompt tokens take a step, including its fixed_s.

        The result is infinite if tpot_s is not longer than fixed_s.
        """
        if tpot_s <= self.fixed_s:
            return float("inf")
        work_s = self.request_work_s(input_tokens, output_tokens)
        occupancy = output_tokens * max((input_tokens + output_tokens / 2) / self.kv_tokens, 1 / self.max_requests)
        # Decoding and memory are equally tight if work / (1 - fixed / step) = occupancy * step.
        step_s = min(tpot_s, self.fixed_s + work_s / occupancy) if occupancy else tpot_s
        prefill = work_s + self.fixed_s * input_tokens / self.step_tokens
        return max(work_s / (1 - self.fixed_s / step_s), prefill)

    def replicas_of_prompt(self, input_tokens: float, output_tokens: float, tpot_s: float) -> float:
        """Returns the part of `replicas_of_request` that the prompt needs immediately. The rest is spread over the time of decoding."""
        total = self.replicas_of_request(input_tokens, output_tokens, tpot_s)
        share = 1 - self.fixed_s / tpot_s
        return min(total, self.per_prompt_token_s * input_tokens / share) if share > 0 else total


@dataclass(frozen=True, slots=True)
class Targets:
    """Service level objectives of a pool."""

    ttft_s: float = 2.0
    """Maximum time to first token, in seconds."""
    tpot_s: float = 0.1
    """Maximum time per output token, in seconds."""
    attainment_fraction: float = 0.99
    """Fraction of requests that must be within both targets, between 0 and 1 (exclusive)."""

    def __post_init__(self) -> None:
        if self.ttft_s <= 0 or self.tpot_s <= 0 or not 0 < self.attainment_fraction < 1:
            raise ValueError(f"{self} is invalid; times must be positive, and attainment_fraction must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The operator's limits and targets for a pool, and the capacity of its replicas."""

    min_replicas: int
    """Minimum number of replicas; 0 allows the pool to scale to zero."""
    max_replicas: int
    """Maximum number of replicas, at least 1."""
    capacity: Capacity
    """What one replica can do."""
    targets: Targets = Targets()
    """Service level objectives."""
    startup_s: float = 60.0
    """Expected time to start a replica, used until one has been measured."""
    gpus_per_replica: float = 1.0
    """GPUs that one replica takes from a shared budget."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(f"replicas must satisfy 0 <= min <= max and max >= 1, got min {self.min_replicas} and max {self.max_replicas}")

    def bounded(self, replicas: int) -> int:
        """Returns the allowed replica count nearest to `replicas`."""
        return max(self.min_replicas, min(self.max_replicas, replicas))
