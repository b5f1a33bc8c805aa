"""What the gateway needs of the link to the engines. `neox_serve.gateway.dispatch.link_dispatcher` provides it; tests script it."""

from collections.abc import Sequence
from typing import Protocol

from neox_serve.core.cluster import ClusterView, Demand, Terms
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.types import Delta, DirectSink, EmbeddingRequest, EmbeddingResult, GenerationRequest, Pool


class TokenStream(Protocol):
    """The output of one generation request. Must be read to its end or cancelled."""

    @property
    def admission_s(self) -> float:
        """Seconds from the request for a replica to the router's answer."""

    @property
    def replica_id(self) -> str:
        """The replica that serves the request now, or did last."""

    @property
    def gaps_s(self) -> Sequence[float]:
        """How long the reader waited for each replica that went on with the request after the one before was lost."""

    @property
    def explanation(self) -> str:
        """How the request came to that replica, for people."""

    @property
    def predicted_cached_tokens(self) -> int | None:
        """Of the prompt, what that replica was thought to have cached; None where nothing was known of its cache."""

    async def next(self, direct: DirectSink | None = None, /) -> Sequence[Delta]:
        """All deltas since the last call, waiting for at least one; the last has `end` set. Raises ServeError where the request failed.

        direct: is offered deltas that come while this waits, but for the last; what it takes is not returned, and the wait goes on.
        """

    def cancel(self) -> None:
        """Frees the engine's request. Idempotent; after the end it does nothing."""


class ReservationHandle(Protocol):
    """A call's reservation of its tenant's quotas."""

    def settle(self, used_tokens: int) -> None:
        """The call has ended and used so much. Again does nothing."""


class Engines(Protocol):
    """Runs requests."""

    async def reserve(self, tenant: Tenant, tokens: int) -> ReservationHandle:
        """Reserves a call and the most tokens it may use in the tenant's quotas. Raises ServeError: QUOTA_EXCEEDED, REQUEST_NEVER_FITS."""

    async def open_generation(self, model: str, request: GenerationRequest, terms: Terms) -> TokenStream:
        """Admits a request and sends it to a replica. Raises ServeError; cancelling the call leaves nothing behind."""

    async def embed(self, model: str, request: EmbeddingRequest, terms: Terms) -> EmbeddingResult:
        """The vector of an input. Raises ServeError; cancelling the call leaves nothing behind."""


class Dispatcher(Engines, Protocol):
    """Sends requests to engine replicas."""

    @property
    def router_connected(self) -> bool:
        """Whether the router answers."""

    def ready_replicas(self, pool: Pool) -> int:
        """Replicas that take requests now."""

    def may_wake(self, pool: Pool) -> bool:
        """Whether requests of a pool without a replica are held until it has one."""

    async def estimate(self, demand: Demand, timeout_s: float) -> tuple[float | None, QuotaState]:
        """Seconds that a request would wait now, None where not known; and what counts against its tenant's quotas. Raises ServeError."""

    def drain_replica(self, replica_id: str) -> None:
        """Asks the router to have a replica replaced."""

    async def cluster_view(self, timeout_s: float) -> ClusterView:
        """The cluster as the router sees it or, where it does not answer in time, as this gateway knows it."""
