"""What the gateway needs to run requests on engines.

`link_dispatcher.LinkDispatcher` implements it; tests use a scripted implementation.
"""

from collections.abc import Sequence
from typing import Protocol

from neox_serve.core.cluster import ClusterView, Demand, Terms
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.types import Delta, DirectSink, EmbeddingRequest, EmbeddingResult, GenerationRequest, Pool


class TokenStream(Protocol):
    """The output of one generation request. It must be read to its end or cancelled."""

    @property
    def admission_s(self) -> float:
        """Seconds spent waiting for replicas to be granted, over all placements of the request."""

    @property
    def replica_id(self) -> str:
        """Id of the replica that runs the request, or ran it last."""

    @property
    def gaps_s(self) -> Sequence[float]:
        """For each time the request moved to another replica: seconds from the loss of the replica to the first output of the next."""

    @property
    def explanation(self) -> str:
        """How that replica was chosen, for logs and traces."""

    @property
    def predicted_cached_tokens(self) -> int | None:
        """Prompt tokens that this replica's prefix cache was expected to hold; None if nothing was known of its cache."""

    async def next(self, direct: DirectSink | None = None, /) -> Sequence[Delta]:
        """Returns all deltas since the last call; waits for at least one. The last delta has `end` set.

        direct: called with each delta that arrives during the wait, except the last. If it returns True it has consumed the delta, which is
        then not returned, and the wait goes on. Raises ServeError if the request failed.
        """

    def cancel(self) -> None:
        """Ends the request and frees its resources. Idempotent; does nothing after the end."""


class ReservationHandle(Protocol):
    """A call's reservation of its tenant's quotas. It must be settled."""

    def settle(self, used_tokens: int) -> None:
        """Ends the reservation, of which the call used this many tokens. Does nothing if it has ended already."""


class Engines(Protocol):
    """Runs requests on engines."""

    async def reserve(self, tenant: Tenant, tokens: int) -> ReservationHandle:
        """Reserves one request and `tokens` tokens, the maximum that it may use, of the tenant's quotas.

        Raises ServeError: QUOTA_EXCEEDED, REQUEST_NEVER_FITS, or NO_READY_REPLICA if quotas cannot be checked.
        """

    async def open_generation(self, model: str, request: GenerationRequest, terms: Terms) -> TokenStream:
        """Places a request on a replica and sends it. Raises ServeError. If the call is cancelled, the request ends."""

    async def embed(self, model: str, request: EmbeddingRequest, terms: Terms) -> EmbeddingResult:
        """Returns the embedding of an input. Raises ServeError. If the call is cancelled, the request ends."""


class Dispatcher(Engines, Protocol):
    """Runs requests on engine replicas, and answers questions about the cluster."""

    @property
    def router_connected(self) -> bool:
        """Whether a router is connected."""

    def ready_replicas(self, pool: Pool) -> int:
        """Returns the number of replicas of a pool that take requests now."""

    def may_wake(self, pool: Pool) -> bool:
        """Returns whether requests of a pool without a replica wait until it has one."""

    async def estimate(self, demand: Demand, timeout_s: float) -> tuple[float | None, QuotaState]:
        """Returns the seconds that a request would wait now, None if unknown, and what counts against its tenant's quotas.

        Raises ServeError(NO_READY_REPLICA) if the router does not reply within timeout_s.
        """

    def drain_replica(self, replica_id: str) -> None:
        """Asks the router to drain a replica, so that it is replaced."""

    async def cluster_view(self, timeout_s: float) -> ClusterView:
        """Returns the cluster as the router knows it or, if it does not reply within timeout_s, as this gateway knows it."""
