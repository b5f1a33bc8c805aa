"""Types that describe the cluster: replicas with their load, requests for replicas, leases, and the views shown to operators."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from neox_serve.core.tenancy.tenants import ANONYMOUS, PriorityClass
from neox_serve.core.types import Pool

RequestKey = tuple[str, int]
"""Identifies a request at the router: the id of its gateway, and the lease id that the gateway chose."""


class ReplicaPhase(StrEnum):
    """Phase in a replica's life. Only READY replicas take requests."""

    READY = "ready"
    DRAINING = "draining"
    """Finishes the requests it has and never takes new ones again."""
    UNHEALTHY = "unhealthy"
    """The engine has failed its health check."""


PHASES_AFTER = {
    ReplicaPhase.READY: frozenset(ReplicaPhase),
    ReplicaPhase.UNHEALTHY: frozenset(ReplicaPhase),
    ReplicaPhase.DRAINING: frozenset({ReplicaPhase.DRAINING}),
}
"""Phases that may follow each phase. A report of any other phase is ignored, for example one that arrives late."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine replica. Raises ValueError if replica_id or address is empty, or if max_requests is below 1."""

    replica_id: str
    """New for each start of a replica."""
    pool: Pool
    model: str
    address: str
    """host:port of its EngineLinkService."""
    max_requests: int
    """Maximum number of requests that the router sends it at a time."""
    phase: ReplicaPhase = ReplicaPhase.READY
    block_tokens: int = 0
    """Tokens per block of the prefix cache whose contents it reports; 0 if it reports none."""

    def __post_init__(self) -> None:
        if not self.replica_id or not self.address or self.max_requests < 1:
            raise ValueError(f"replica {self.replica_id!r} at {self.address!r}, max_requests {self.max_requests}")

    def moved_to(self, phase: ReplicaPhase) -> "Replica":
        """Returns the replica in the given phase, or unchanged if PHASES_AFTER does not allow the step."""
        return replace(self, phase=phase) if phase in PHASES_AFTER[self.phase] else self


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Load of a replica, as its engine last reported it."""

    running_requests: int = 0
    waiting_requests: int = 0
    kv_usage_fraction: float = 0.0
    """Fraction of the KV cache's blocks in use, 0 to 1."""
    output_tokens_per_second: float = 0.0
    adapters: frozenset[str] = frozenset()
    """Names of the adapters that are loaded."""
    prefill_backlog_tokens: int = 0
    """Prompt tokens of requests that have no output yet; see EngineStats."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Whose request it is, how urgent it is, and how it is traced and deduplicated."""

    tenant: str = ANONYMOUS
    weight: float = 1.0
    """The tenant's share of capacity, relative to the weights of other tenants."""
    priority: PriorityClass = PriorityClass.DEFAULT
    time_left_s: float = math.inf
    """Seconds until the deadline; infinite if there is none."""
    waited_s: float = 0.0
    """Seconds since the request arrived at its gateway, if it is placed again."""
    traceparent: str = ""
    """W3C trace context; empty if the request is not traced."""
    idempotency_key: str = ""
    """The same for all retries of a request; empty if the client gave no request id."""
    takes_over: bool = False
    """Whether the gateway that handled an earlier try no longer knows the request."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs from a replica."""

    pool: Pool
    model: str
    prompt_tokens: int
    output_tokens: int
    """Maximum number of tokens it may generate, over all its sequences."""
    excluded: tuple[str, ...] = ()
    """Ids of the replicas that have already failed the request."""
    terms: Terms = Terms()
    adapter: str | None = None
    session: str = ""
    """Requests with the same session prefer the same replica; empty for none."""
    blocks: tuple[int, ...] = ()
    """Hashes of the prompt's blocks that a prefix cache could hold (`core.prefix_cache.block_hashes`), first to last."""
    block_tokens: int = 0
    """Tokens per block in `blocks`."""

    @property
    def tokens(self) -> int:
        """Tokens that it claims on a replica: the prompt plus the maximum output."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Lease:
    """A request's claim on a replica."""

    lease_id: int
    """Unique for the life of the gateway that holds the lease."""
    replica_id: str
    tokens: int
    """Prompt tokens plus the maximum output."""
    cached_tokens: int = 0
    """Prompt tokens that the replica's prefix cache was expected to hold."""

    @property
    def uncached_tokens(self) -> int:
        """Tokens that the replica has to compute."""
        return self.tokens - self.cached_tokens


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """How fast a complete response was."""

    first_token_s: float
    """Seconds from the request's arrival at its gateway to its first token, or to its embedding."""
    per_token_s: float | None = None
    """Mean seconds between the further tokens of a sequence; None if there were none."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of a lease, with what its request used."""

    lease_id: int
    cached_tokens: int = 0
    """Prompt tokens that were found in the replica's prefix cache."""
    output_tokens: int = 0
    """Tokens generated, over all sequences."""
    timings: RequestTimings | None = None
    """None if the response was not complete, or did not arrive token by token."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Sum of the leases on a replica or a pool."""

    requests: int = 0
    tokens: int = 0
    """Uncached tokens of these leases."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica with its load, for operators."""

    replica: Replica
    load: ReplicaLoad
    outstanding: Outstanding
    age_s: float
    """Seconds since it registered."""
    lost: bool = False
    """Whether its stream to the router has ended; the router forgets it after the grace period."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests now."""
        return self.replica.phase is ReplicaPhase.READY and not self.lost


@dataclass(frozen=True, slots=True)
class GatewayView:
    """A gateway with its requests in flight, for operators."""

    gateway_id: str
    requests_in_flight: int
    age_s: float
    """Seconds since it registered."""


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant's requests at replicas and in the queue, for operators."""

    tenant: str
    running_requests: int = 0
    running_tokens: int = 0
    """Tokens that the running requests claim."""
    waiting_requests: int = 0
    waiting_tokens: int = 0
    """Tokens that the waiting requests claim."""
    served: float = 0.0
    """The tenant's virtual token counter in the fair queue."""


@dataclass(frozen=True, slots=True)
class ScalingView:
    """The scaling decision for a pool, for operators."""

    pool: Pool
    wanted_replicas: int
    reason: str
    alarm: bool = False
    """Whether the scaling policy failed; the pool then keeps its size."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as the router knows it or, without a router, as one gateway knows it."""

    replicas: tuple[ReplicaView, ...]
    gateways: tuple[GatewayView, ...]
    from_router: bool
    """Whether the router made this view; otherwise it is one gateway's own."""
    tenants: tuple[TenantView, ...] = ()
    """Tenants that have requests, the busiest first; not necessarily all."""
    scaling: tuple[ScalingView, ...] = ()
    """One entry for each pool that scales."""
