"""A gateway's way to the engines: asks the router for a replica, sends the request there, brings back what it yields.

Without a router it goes on with the replicas it knows, by the same policy; the next router is told what is in flight.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import count
from random import Random

import structlog

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
from neox_serve.gateway.dispatch.admission import Admission
from neox_serve.gateway.dispatch.engine_links import EngineLinks
from neox_serve.gateway.dispatch.protocol import ReservationHandle
from neox_serve.gateway.dispatch.reservations import Reservations
from neox_serve.gateway.dispatch.routed_stream import Placement, RoutedStream
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import LinkTls
from neox_serve.link.router_link_client import METRICS_INTERVAL_S, ResolveRouter, RouterLink
from neox_serve.link.streams import repeat, steady_wall_clock, stop_task
from neox_serve.wire import router_messages as wire

_log = structlog.get_logger(__name__)

_UNTOLD_BLOCK_TOKENS = 32


NO_TERMS = Terms()
Estimated = tuple[float | None, QuotaState]


class LinkDispatcher:
    """Sends requests to replicas.

    gateway_id: a new one each start. clock: seconds, steady. metrics_text: this
    process's metrics, for the router's page. admission_timeout_s: longest wait for the router's answer, after which the gateway chooses by
    itself. link_timeout_s: longest wait for the link to a replica just granted.
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
        self._link_timeout_s = link_timeout_s
        self._changed = asyncio.Event()
        self._waking: frozenset[Pool] = frozenset()
        self._links = EngineLinks(gateway_id=gateway_id, rng=rng, on_change=self._announce_change, tls=tls)
        self._router = RouterLink[pb.ConnectGatewayRequest, pb.ConnectGatewayResponse](
            resolve_router=resolve_router,
            connect=lambda channel: RouterLinkServiceStub(channel).ConnectGateway(),
            hello=self._hello,
            response_type=pb.ConnectGatewayResponse,
            on_response=self._on_response,
            on_connected=self._on_connected,
            tls=tls,
            on_lost=self._on_router_lost,
            rng=rng,
        )
        self._admission = Admission(
            gateway_id=gateway_id,
            links=self._links,
            send=self._router.send,
            router_connected=lambda: self._router.connected,
            rng=rng,
            timeout_s=admission_timeout_s,
        )
        self._reservations = Reservations(send=self._router.send, clock=steady_wall_clock(clock))
        self._streams: dict[int, RoutedStream] = {}
        self._estimates: dict[int, asyncio.Future[Estimated]] = {}
        self._view_ids = count(1)
        self._views: dict[int, asyncio.Future[ClusterView]] = {}
        self._metrics_task: asyncio.Task[None] | None = None
        self._open = 0
        self.gateway_link_address = ""

    async def start(self) -> None:
        """Starts to connect to the router, and to the replicas as it names them. Does not wait for them."""
        self._router.start()
        self._metrics_task = asyncio.ensure_future(repeat(self._send_metrics, METRICS_INTERVAL_S))

    async def close(self) -> None:
        """Ends all links. What is in flight fails with REPLICA_LOST."""
        await stop_task(self._metrics_task)
        await self._router.close()
        await self._links.close()

    @property
    def requests_in_flight(self) -> int:
        """Requests opened and not ended."""
        return self._open

    @property
    def router_connected(self) -> bool:
        """Whether a router answers. Without one requests are still served."""
        return self._router.connected

    def ready_replicas(self, pool: Pool) -> int:
        """Replicas of a pool that are ready and whose link is up."""
        return sum(up and replica.pool is pool and replica.phase is ReplicaPhase.READY for replica, up in self._links.replicas())

    def may_wake(self, pool: Pool) -> bool:
        """Whether requests of a pool without a replica are held until it has one."""
        return self.router_connected and pool in self._waking

    async def wait_ready(self, pools: Iterable[Pool], timeout_s: float) -> None:
        """Returns when each pool has a replica. Raises ServeError(NO_READY_REPLICA) where that takes longer than timeout_s."""
        missing = list(pools)
        try:
            async with asyncio.timeout(timeout_s):
                while missing := [pool for pool in missing if not self.ready_replicas(pool)]:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            message = f"no ready replica within {timeout_s:g} s: {', '.join(missing)}"
            raise ServeError(Reason.NO_READY_REPLICA, message, retry_after_s=NOT_READY_RETRY_S) from error

    async def reserve(self, tenant: Tenant, tokens: int) -> ReservationHandle:
        """Reserves a call and its most tokens in the tenant's quotas. Raises ServeError: QUOTA_EXCEEDED, REQUEST_NEVER_FITS."""
        return await self._reservations.reserve(tenant, tokens)

    async def open_generation(self, model: str, request: GenerationRequest, terms: Terms = NO_TERMS) -> RoutedStream:
        """Admits a request and sends it; the stream must be read to its end or cancelled.

        Raises ServeError: UNKNOWN_MODEL, NO_READY_REPLICA, OVERLOADED, REPLICA_LOST. Cancelling the call leaves nothing behind.
        """
        came_s, placed = self._clock(), count()

        def place(what: GenerationRequest, failed: tuple[str, ...]) -> Awaitable[Placement]:
            demand = self._generation_demand(model, what)
            asked = self._later(terms, came_s) if next(placed) else terms
            return self._place(request.request_id, replace(demand, excluded=failed, terms=asked))

        stream = RoutedStream(
            request,
            place=place,
            settle=self._settle_stream,
            on_end=self._ended,
            clock=self._clock,
            on_placed=self._note_stream,
        )
        self._open += 1
        await stream.open()
        return stream

    async def embed(self, model: str, request: EmbeddingRequest, terms: Terms = NO_TERMS) -> EmbeddingResult:
        """The vector of an input. Raises ServeError as `open_generation` does, or as the engine does. Cancelling the call frees it."""
        ids = request.prompt_token_ids
        blocks, block_tokens = self._blocks(Pool.EMBEDDING, root(model, None, request.cache_salt), ids)
        demand = Demand(Pool.EMBEDDING, model, len(ids), 0, terms=terms, blocks=blocks, block_tokens=block_tokens)
        self._open += 1
        try:
            return await self._embed(demand, request)
        finally:
            self._ended()

    async def estimate(self, demand: Demand, timeout_s: float) -> Estimated:
        """What would become of a request now: seconds it would wait, None where not known, and its tenant's use of quotas.

        Raises ServeError(NO_READY_REPLICA) where the router does not answer in time.
        """
        number = next(self._view_ids)
        future: asyncio.Future[Estimated] = asyncio.get_running_loop().create_future()
        self._estimates[number] = future
        self._router.send(wire.estimate_request(number, demand))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise ServeError(Reason.NO_READY_REPLICA, "the router does not answer", {}, NOT_READY_RETRY_S) from None
        finally:
            del self._estimates[number]

    def _later(self, terms: Terms, came_s: float) -> Terms:
        """The terms of a request that came some time ago."""
        gone_s = self._clock() - came_s
        return replace(terms, time_left_s=max(0.0, terms.time_left_s - gone_s), waited_s=gone_s)

    def _note_stream(self, lease: Lease, stream: RoutedStream) -> None:
        self._streams[lease.lease_id] = stream

    def _settle_stream(self, settled: Settled) -> None:
        self._streams.pop(settled.lease_id, None)
        self._admission.settle(settled)

    def drain_replica(self, replica_id: str) -> None:
        """Asks the router to have a replica replaced."""
        self._router.send(wire.drain_request(replica_id))

    async def cluster_view(self, timeout_s: float) -> ClusterView:
        """The router's view of the cluster, or where it does not answer in time what this gateway knows by itself."""
        if not self._router.connected:
            return self._own_view()
        view_id = next(self._view_ids)
        future: asyncio.Future[ClusterView] = asyncio.get_running_loop().create_future()
        self._views[view_id] = future
        self._router.send(wire.view_request(view_id))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return self._own_view()
        finally:
            del self._views[view_id]

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
        """The names of a prompt's blocks, and their size. Also where no replica tells of its cache: a policy may go by the beginning."""
        block_tokens = self._links.block_tokens(pool) or _UNTOLD_BLOCK_TOKENS
        return reusable_blocks(parent, ids, block_tokens), block_tokens

    async def _embed(self, demand: Demand, request: EmbeddingRequest) -> EmbeddingResult:
        admission_s, came_s = 0.0, self._clock()
        while True:
            asked_s = self._clock()
            placement = await self._place(request.request_id, demand)
            admission_s += self._clock() - asked_s
            lease, link = placement.lease, placement.link
            settled = Settled(lease.lease_id)
            try:
                result = await link.embed(lease.lease_id, request)
                settled = Settled(lease.lease_id, result.cached_tokens, timings=RequestTimings(self._clock() - came_s))
                return replace(result, admission_s=admission_s, replica_id=lease.replica_id)
            except ServeError as error:
                if event_of_failure(error, placement.failed) is not RequestEvent.MOVABLE:
                    raise
                demand = replace(demand, excluded=(*placement.failed, lease.replica_id))
            finally:
                link.cancel(lease.lease_id)
                self._admission.settle(settled)

    async def _place(self, request_id: str, demand: Demand) -> Placement:
        """Leases a replica whose link is up; one that cannot be reached has failed the request. Raises ServeError."""
        while True:
            admitted = await self._admission.lease(demand)
            lease = admitted.lease
            try:
                link = await self._links.up(lease.replica_id, self._link_timeout_s)
            except ServeError as error:
                self._admission.settle(Settled(lease.lease_id))
                if event_of_failure(error, demand.excluded) is not RequestEvent.MOVABLE:
                    raise
                demand = replace(demand, excluded=(*demand.excluded, lease.replica_id))
            except BaseException:
                self._admission.settle(Settled(lease.lease_id))
                raise
            else:
                _log.info("request_placed", request_id=request_id, replica_id=lease.replica_id, failed_replicas=demand.excluded)
                predicted = admitted.by_router and self._links.block_tokens(demand.pool) > 0
                return Placement(lease, link, demand.excluded, admitted.explanation, predicted)

    def _ended(self) -> None:
        self._open -= 1

    def _announce_change(self) -> None:
        self._admission.on_links_changed()
        self._changed.set()

    # The router

    def _hello(self) -> pb.ConnectGatewayRequest:
        return wire.gateway_hello(self._gateway_id, self._admission.leases(), *self._reservations.hello(), self.gateway_link_address)

    def _on_connected(self) -> None:
        self._admission.on_router_connected()
        self._reservations.on_connected()

    def _on_response(self, response: pb.ConnectGatewayResponse) -> None:
        match response.WhichOneof("message"):
            case "admit":
                self._admission.on_answer(response.admit)
            case "replicas":
                self._waking = wire.waking_from_proto(response.replicas)
                self._links.update(wire.replicas_from_proto(response.replicas))
            case "reserve":
                self._reservations.on_answer(response.reserve)
            case "preempt_lease_id":
                if stream := self._streams.get(response.preempt_lease_id):
                    stream.preempt()
            case "estimate":
                estimate = self._estimates.get(response.estimate.estimate_id)
                if estimate is not None and not estimate.done():
                    estimate.set_result(wire.estimate_from_proto(response.estimate))
            case "view":
                future = self._views.get(response.view.view_id)
                if future is not None and not future.done():
                    future.set_result(wire.view_from_proto(response.view))

    def _on_router_lost(self) -> None:
        self._admission.on_router_lost()
        for future in self._views.values():
            if not future.done():
                future.set_result(self._own_view())

    def _own_view(self) -> ClusterView:
        candidates = self._admission.candidates()
        replicas = tuple(ReplicaView(each.replica, ReplicaLoad(), each.outstanding, 0.0) for each in candidates if each.reachable)
        gateway = GatewayView(self._gateway_id, self._admission.leases_in_flight, self._clock() - self._started_s)
        return ClusterView(replicas, (gateway,), from_router=False)

    async def _send_metrics(self) -> None:
        if self._router.connected:
            self._router.send(wire.gateway_metrics(self._metrics_text()))
