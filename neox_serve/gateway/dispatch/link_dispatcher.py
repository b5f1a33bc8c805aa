"""The gateway's `Dispatcher`: asks the router for a replica, sends the request there and returns what the replica generates.

Without a router it goes on with the replicas it knows and chooses among them itself. The next router learns from the hello which requests
are in flight.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import count
from random import Random

from neox_serve.core.cluster import (
    ClusterView,
    Demand,
    GatewayView,
    Lease,
    ReplicaLoad,
    ReplicaPhase,
    ReplicaView,
    RequestTimings,
    Settled,
    Terms,
)
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.request_life import RequestEvent, event_of_failure
from neox_serve.core.prefix_cache.block_hashes import reusable_blocks, root
from neox_serve.core.scheduling.refusal import NOT_READY_RETRY_S
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.types import EmbeddingRequest, EmbeddingResult, GenerationRequest, Pool, TokenIds
from neox_serve.gateway.dispatch.engine_links import EngineLinks
from neox_serve.gateway.dispatch.placement import Placement, Placer
from neox_serve.gateway.dispatch.protocol import ReservationHandle
from neox_serve.gateway.dispatch.reservations import Reservations
from neox_serve.gateway.dispatch.routed_stream import RoutedStream
from neox_serve.gateway.dispatch.router_requests import NoReplyError, RouterRequests
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import LinkTls
from neox_serve.link.router_link_client import METRICS_INTERVAL_S, ResolveRouter, RouterLink
from neox_serve.link.streams import repeat, steady_wall_clock, stop_task
from neox_serve.wire import router_messages as wire

_DEFAULT_BLOCK_TOKENS = 32
"""Block size for hashing prompts if no replica of the pool reports its prefix cache."""

NO_TERMS = Terms()
"""The terms of a request without a tenant, a priority or a deadline."""

Estimate = tuple[float | None, QuotaState]
"""Seconds that a request would wait, None if unknown, and what counts against its tenant's quotas."""


class LinkDispatcher:
    """Sends requests to replicas over the router link and the engine links.

    gateway_id: new for each start of the process. resolve_router: returns the router's address. metrics_text: returns this process's
    metrics, for the router's metrics page. clock: monotonic seconds. admission_timeout_s: longest wait for the router's first reply to a
    request, after which the gateway chooses a replica itself. link_timeout_s: longest wait for the link to a replica that was just granted.
    """

    def __init__(
        self,
        *,
        gateway_id: str,
        resolve_router: ResolveRouter,
        metrics_text: Callable[[], str],
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        admission_timeout_s: float = 2.0,
        link_timeout_s: float = 1.0,
        tls: LinkTls | None = None,
    ) -> None:
        rng = rng or Random()
        self._gateway_id = gateway_id
        self._metrics_text = metrics_text
        self._clock = clock
        self._started_s = clock()
        self._changed = asyncio.Event()
        self._waking: frozenset[Pool] = frozenset()
        self._links = EngineLinks(gateway_id=gateway_id, rng=rng, on_change=self._announce_change, tls=tls)
        self._router = self._router_link(resolve_router, rng, tls)
        send = self._router.send
        self._placer = Placer(
            gateway_id=gateway_id,
            links=self._links,
            send=send,
            connected=self._is_connected,
            rng=rng,
            timeout_s=admission_timeout_s,
            link_timeout_s=link_timeout_s,
        )
        self._reservations = Reservations(send=send, connected=self._is_connected, clock=steady_wall_clock(clock))
        self._estimates = RouterRequests[Estimate](send=send, connected=self._is_connected)
        self._views = RouterRequests[ClusterView](send=send, connected=self._is_connected)
        self._streams: dict[int, RoutedStream] = {}
        self._metrics_task: asyncio.Task[None] | None = None
        self._open = 0
        self.gateway_link_address = ""
        """host:port of this gateway's GatewayLinkService; set before `start`, empty if it has none."""

    def _router_link(
        self, resolve_router: ResolveRouter, rng: Random, tls: LinkTls | None
    ) -> RouterLink[pb.ConnectGatewayRequest, pb.ConnectGatewayResponse]:
        return RouterLink(
            resolve_router=resolve_router,
            connect=lambda channel: RouterLinkServiceStub(channel).ConnectGateway(),
            hello=self._hello,
            response_type=pb.ConnectGatewayResponse,
            on_response=self._on_response,
            on_connected=self._on_router_connected,
            on_lost=self._on_router_lost,
            rng=rng,
            tls=tls,
        )

    async def start(self) -> None:
        """Starts to connect to the router, and then to the replicas that it lists. Does not wait for either."""
        self._router.start()
        self._metrics_task = asyncio.ensure_future(repeat(self._send_metrics, METRICS_INTERVAL_S))

    async def close(self) -> None:
        """Closes all links. Requests in flight fail with REPLICA_LOST."""
        await stop_task(self._metrics_task)
        await self._router.close()
        await self._links.close()

    @property
    def requests_in_flight(self) -> int:
        """Number of requests opened and not ended."""
        return self._open

    @property
    def router_connected(self) -> bool:
        """Whether a router is connected. Requests are served even without one."""
        return self._router.connected

    def ready_replicas(self, pool: Pool) -> int:
        """Returns the number of replicas of a pool that are ready and whose link is up."""
        return sum(up and replica.pool is pool and replica.phase is ReplicaPhase.READY for replica, up in self._links.replicas())

    def may_wake(self, pool: Pool) -> bool:
        """Returns whether the router holds requests of a pool that has no replica until it has one."""
        return self.router_connected and pool in self._waking

    async def wait_ready(self, pools: Iterable[Pool], timeout_s: float) -> None:
        """Waits until each pool has a ready replica. Raises ServeError(NO_READY_REPLICA) if that takes longer than timeout_s."""
        missing = list(pools)
        try:
            async with asyncio.timeout(timeout_s):
                while missing := [pool for pool in missing if not self.ready_replicas(pool)]:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            message = f"no ready replica within {timeout_s:g} s: {', '.join(missing)}"
            raise ServeError(Reason.NO_READY_REPLICA, message, retry_after_s=NOT_READY_RETRY_S) from error

    # Requests

    async def reserve(self, tenant: Tenant, tokens: int) -> ReservationHandle:
        """Reserves one request and `tokens` tokens of the tenant's quotas.

        Raises ServeError: QUOTA_EXCEEDED, REQUEST_NEVER_FITS, or NO_READY_REPLICA if no router replies.
        """
        return await self._reservations.reserve(tenant, tokens)

    async def open_generation(self, model: str, request: GenerationRequest, terms: Terms = NO_TERMS) -> RoutedStream:
        """Places a generation request on a replica and sends it. The stream must be read to its end or cancelled.

        Raises ServeError: UNKNOWN_MODEL, NO_READY_REPLICA, OVERLOADED, REPLICA_LOST. If the call is cancelled, the request ends.
        """
        arrived_s, attempts = self._clock(), count()

        def place(current: GenerationRequest, failed: tuple[str, ...]) -> Awaitable[Placement]:
            now_terms = self._later(terms, arrived_s) if next(attempts) else terms
            demand = replace(self._generation_demand(model, current), excluded=failed, terms=now_terms)
            return self._placer.place(request.request_id, demand)

        stream = RoutedStream(
            request,
            place=place,
            settle=self._settle_stream,
            on_end=self._end_request,
            clock=self._clock,
            on_placed=self._note_stream,
        )
        self._open += 1
        await stream.open()
        return stream

    async def embed(self, model: str, request: EmbeddingRequest, terms: Terms = NO_TERMS) -> EmbeddingResult:
        """Returns the embedding of an input. Raises ServeError as `open_generation` or the engine does. If cancelled, the request ends."""
        ids = request.prompt_token_ids
        blocks, block_tokens = self._blocks(Pool.EMBEDDING, root(model, None, request.cache_salt), ids)
        demand = Demand(Pool.EMBEDDING, model, len(ids), 0, terms=terms, blocks=blocks, block_tokens=block_tokens)
        self._open += 1
        try:
            return await self._embed(demand, request)
        finally:
            self._end_request()

    async def _embed(self, demand: Demand, request: EmbeddingRequest) -> EmbeddingResult:
        admission_s, arrived_s = 0.0, self._clock()
        while True:
            started_s = self._clock()
            placement = await self._placer.place(request.request_id, demand)
            admission_s += self._clock() - started_s
            lease, link = placement.lease, placement.link
            settled = Settled(lease.lease_id)
            try:
                result = await link.embed(lease.lease_id, request)
                settled = Settled(lease.lease_id, result.cached_tokens, timings=RequestTimings(self._clock() - arrived_s))
                return replace(result, admission_s=admission_s, replica_id=lease.replica_id)
            except ServeError as error:
                if event_of_failure(error, placement.failed) is not RequestEvent.MOVABLE:
                    raise
                demand = replace(demand, excluded=(*placement.failed, lease.replica_id))
            finally:
                link.cancel(lease.lease_id)
                self._placer.settle(settled)

    def _generation_demand(self, model: str, request: GenerationRequest) -> Demand:
        blocks, block_tokens = self._blocks(Pool.GENERATION, root(model, request.adapter, request.cache_salt), request.prompt_token_ids)
        return Demand(
            Pool.GENERATION,
            model,
            len(request.prompt_token_ids),
            request.max_output_tokens,
            adapter=request.adapter,
            session=request.session,
            blocks=blocks,
            block_tokens=block_tokens,
        )

    def _blocks(self, pool: Pool, parent: int, ids: TokenIds) -> tuple[tuple[int, ...], int]:
        """Returns the hashes of a prompt's blocks, and the block size in tokens.

        They are sent even if no replica reports its cache: a routing policy may keep prompts with the same beginning together.
        """
        block_tokens = self._links.block_tokens(pool) or _DEFAULT_BLOCK_TOKENS
        return reusable_blocks(parent, ids, block_tokens), block_tokens

    def _later(self, terms: Terms, arrived_s: float) -> Terms:
        """Returns the terms as they are now, for a request that arrived at `arrived_s` and is placed again."""
        waited_s = self._clock() - arrived_s
        return replace(terms, time_left_s=max(0.0, terms.time_left_s - waited_s), waited_s=waited_s)

    def _note_stream(self, lease: Lease, stream: RoutedStream) -> None:
        self._streams[lease.lease_id] = stream

    def _settle_stream(self, settled: Settled) -> None:
        self._streams.pop(settled.lease_id, None)
        self._placer.settle(settled)

    def _end_request(self) -> None:
        self._open -= 1

    # Questions to the router

    async def estimate(self, demand: Demand, timeout_s: float) -> Estimate:
        """Returns the wait that a request would have now, and its tenant's use of quotas.

        Raises ServeError(NO_READY_REPLICA) if there is no router or it does not reply within timeout_s.
        """
        estimate_id = self._estimates.next_id()
        try:
            return await self._estimates.call(estimate_id, wire.estimate_request(estimate_id, demand), timeout_s=timeout_s)
        except NoReplyError:
            raise ServeError(Reason.NO_READY_REPLICA, "the router does not reply", {}, NOT_READY_RETRY_S) from None

    async def cluster_view(self, timeout_s: float) -> ClusterView:
        """Returns the router's view of the cluster. If no router replies within timeout_s, returns what this gateway knows itself."""
        view_id = self._views.next_id()
        try:
            return await self._views.call(view_id, wire.view_request(view_id), timeout_s=timeout_s)
        except NoReplyError:
            return self._own_view()

    def drain_replica(self, replica_id: str) -> None:
        """Asks the router to drain a replica, so that it is replaced. Does nothing if no router is connected."""
        self._router.send(wire.drain_request(replica_id))

    def _own_view(self) -> ClusterView:
        candidates = self._placer.candidates()
        replicas = tuple(ReplicaView(each.replica, ReplicaLoad(), each.outstanding, 0.0) for each in candidates if each.reachable)
        gateway = GatewayView(self._gateway_id, self._placer.leases_in_flight, self._clock() - self._started_s)
        return ClusterView(replicas, (gateway,), from_router=False)

    # Events of the links

    def _hello(self) -> pb.ConnectGatewayRequest:
        return wire.gateway_hello(self._gateway_id, self._placer.leases(), *self._reservations.hello(), self.gateway_link_address)

    def _is_connected(self) -> bool:
        return self._router.connected

    def _on_router_connected(self) -> None:
        self._placer.on_router_connected()
        self._reservations.on_router_connected()

    def _on_router_lost(self) -> None:
        self._placer.on_router_lost()
        self._reservations.on_router_lost()
        self._estimates.on_router_lost()
        self._views.on_router_lost()

    def _on_response(self, response: pb.ConnectGatewayResponse) -> None:
        match response.WhichOneof("message"):
            case "admit":
                self._placer.on_reply(response.admit)
            case "replicas":
                self._waking = wire.waking_from_proto(response.replicas)
                self._links.update(wire.replicas_from_proto(response.replicas))
            case "reserve":
                self._reservations.on_reply(response.reserve)
            case "preempt_lease_id":
                if stream := self._streams.get(response.preempt_lease_id):
                    stream.preempt()
            case "estimate":
                self._estimates.on_reply(response.estimate.estimate_id, wire.estimate_from_proto(response.estimate))
            case "view":
                self._views.on_reply(response.view.view_id, wire.view_from_proto(response.view))

    def _announce_change(self) -> None:
        self._placer.on_links_changed()
        self._changed.set()

    async def _send_metrics(self) -> None:
        if self._router.connected:
            self._router.send(wire.gateway_metrics(self._metrics_text()))
