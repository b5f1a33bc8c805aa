"""What router, gateways and operators say about the cluster: replicas, their load, and requests' claims on them."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from neox_serve.core.tenancy.tenants import ANONYMOUS, PriorityClass
from neox_serve.core.types import Pool

RequestKey = tuple[str, int]
"""Identifies a request at the router: the id of its gateway, and the lease id that the gateway chose."""


class ReplicaPhase(StrEnum):
    """What a replica is up to. Only READY takes requests."""

    READY = "ready"
    DRAINING = "draining"  # finishes what it has; never takes requests again
    UNHEALTHY = "unhealthy"  # its engine has failed


PHASES_AFTER = {
    ReplicaPhase.READY: frozenset(ReplicaPhase),
    ReplicaPhase.UNHEALTHY: frozenset(ReplicaPhase),
    ReplicaPhase.DRAINING: frozenset({ReplicaPhase.DRAINING}),
}
"""The phases that may follow each phase; other reports (a late one that overtook nothing, say) are ignored."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine replica. replica_id: a new one each start. address: host:port of its link. max_requests: most it takes at a time.

    block_tokens: tokens of a block of its prefix cache, of which it tells what it holds; 0 where it tells nothing.
    """

    replica_id: str
    pool: Pool
    model: str
    address: str
    max_requests: int
    phase: ReplicaPhase = ReplicaPhase.READY
    block_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.replica_id or not self.address or self.max_requests < 1:
            raise ValueError(f"replica {self.replica_id!r} at {self.address!r}, max_requests {self.max_requests}")

    def moved_to(self, phase: ReplicaPhase) -> "Replica":
        """The replica in this phase, or as it is where the table does not allow the step."""
        return replace(self, phase=phase) if phase in PHASES_AFTER[self.phase] else self


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Load of a replica as its engine last reported it. adapters: those that it has loaded. prefill_backlog_tokens: see EngineStats."""

    running_requests: int = 0
    waiting_requests: int = 0
    kv_usage_fraction: float = 0.0
    output_tokens_per_second: float = 0.0
    adapters: frozenset[str] = frozenset()
    prefill_backlog_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """On whose account and how urgently a request runs, and the span that it belongs to.

    weight: the tenant's share. time_left_s: until its deadline, infinite for none. waited_s: how long it has been on its way, where it
    comes here again. traceparent: W3C's text, empty where nothing is traced. idempotency_key: what repeats of it are known by, empty where
    its client gave no id; takes_over: the gateway that answered it before does not know of it any more.
    """

    tenant: str = ANONYMOUS
    weight: float = 1.0
    priority: PriorityClass = PriorityClass.DEFAULT
    time_left_s: float = math.inf
    waited_s: float = 0.0
    traceparent: str = ""
    idempotency_key: str = ""
    takes_over: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for. output_tokens: the most it may generate. excluded: replicas that have already failed it.

    session: whatever ties requests together that shall meet the same replica; empty for none. blocks: names of the prompt's blocks that a
    cache can spare (core.prefix_cache.block_hashes), of block_tokens each; empty where nothing can be known of caches.
    """

    pool: Pool
    model: str
    prompt_tokens: int
    output_tokens: int
    excluded: tuple[str, ...] = ()
    terms: Terms = Terms()
    adapter: str | None = None
    session: str = ""
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens it claims of a replica: its prompt plus the most it may generate."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Lease:
    """A request's claim on a replica. lease_id: unique for its gateway's life. tokens: prompt plus the most it may generate.

    cached_tokens: of its prompt, those that the replica's cache was thought to spare.
    """

    lease_id: int
    replica_id: str
    tokens: int
    cached_tokens: int = 0

    @property
    def uncached_tokens(self) -> int:
        """Tokens that the replica has to compute."""
        return self.tokens - self.cached_tokens


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """How fast an answer came. first_token_s: from the request's coming to its gateway to its first token, or to its vector.

    per_token_s: mean over the further tokens of a sequence; None where there were none.
    """

    first_token_s: float
    per_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A lease that ended, and what its request took: prompt tokens found in the replica's cache, and tokens generated.

    timings: of an answer that is whole and came token by token.
    """

    lease_id: int
    cached_tokens: int = 0
    output_tokens: int = 0
    timings: RequestTimings | None = None


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Claims on a replica, summed: requests dispatched and not ended, and their uncached tokens."""

    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica with its load. age_s: since it registered. lost: its stream to the router has ended, a moment ago."""

    replica: Replica
    load: ReplicaLoad
    outstanding: Outstanding
    age_s: float
    lost: bool = False

    @property
    def ready(self) -> bool:
        """Whether it takes requests now."""
        return self.replica.phase is ReplicaPhase.READY and not self.lost


@dataclass(frozen=True, slots=True)
class GatewayView:
    """A gateway with what it has in flight. age_s: since it registered."""

    gateway_id: str
    requests_in_flight: int
    age_s: float


@dataclass(frozen=True, slots=True)
class TenantView:
    """What a tenant has at replicas and what of it waits: requests, and the tokens that they claim. served: its virtual token counter."""

    tenant: str
    running_requests: int = 0
    running_tokens: int = 0
    waiting_requests: int = 0
    waiting_tokens: int = 0
    served: float = 0.0


@dataclass(frozen=True, slots=True)
class ScalingView:
    """How many replicas a pool should have, and why. alarm: the policy failed, and the size is kept."""

    pool: Pool
    wanted_replicas: int
    reason: str
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as one part knows it. from_router: whether the router said so; else it is what one gateway knows by itself.

    tenants: the busiest, of those that have anything. scaling: of pools that scale.
    """

    replicas: tuple[ReplicaView, ...]
    gateways: tuple[GatewayView, ...]
    from_router: bool
    tenants: tuple[TenantView, ...] = ()
    scaling: tuple[ScalingView, ...] = ()
