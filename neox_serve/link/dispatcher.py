"""A gateway's way to the engines: asks the router for a replica, sends the request there, brings back what it yields.

Without a router it goes on with the replicas it knows, by the same policy; the next router is told what is in flight.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from random import Random

import structlog

from neox_serve.core.cluster import ClusterView, Demand, GatewayView, ReplicaLoad, ReplicaPhase, ReplicaView
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.refusal import NOT_READY_RETRY_S
from neox_serve.core.replacement import Event, event_of_failure
from neox_serve.core.types import EmbeddingRequest, EmbeddingResult, GenerationRequest, Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.admission import Admission
from neox_serve.link.engine_links import EngineLinks
from neox_serve.link.generation_stream import GenerationStream, Placement
from neox_serve.link.router_link_client import METRICS_INTERVAL_S, ResolveRouter, RouterLink
from neox_serve.link.streams import repeat, stop_task
from neox_serve.wire import router_messages as wire

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Sends requests to replicas.

    gateway_id: a new one each start. metrics_text: this process's metrics, for the router's page. admission_timeout_s: longest wait for the
    router's answer, after which the gateway chooses by itself. link_timeout_s: longest wait for the link to a replica just granted.
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
    ) -> None:
        rng = rng or Random()
        self._gateway_id = gateway_id
        self._metrics_text = metrics_text
        self._clock = clock
        self._started_s = clock()
        self._link_timeout_s = link_timeout_s
        self._changed = asyncio.Event()
        self._links = EngineLinks(gateway_id=gateway_id, rng=rng, on_change=self._announce_change)
        self._router = RouterLink[pb.ConnectGatewayRequest, pb.ConnectGatewayResponse](
            resolve_router=resolve_router,
            connect=lambda channel: RouterLinkServiceStub(channel).ConnectGateway(),
            hello=self._hello,
            response_type=pb.ConnectGatewayResponse,
            on_response=self._on_response,
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
        self._view_ids = count(1)
        self._views: dict[int, asyncio.Future[ClusterView]] = {}
        self._metrics_task: asyncio.Task[None] | None = None
        self._open = 0

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

    async def open_generation(self, model: str, request: GenerationRequest) -> GenerationStream:
        """Admits a request and sends it; the stream must be read to its end or cancelled.

        Raises ServeError: UNKNOWN_MODEL, NO_READY_REPLICA, OVERLOADED, REPLICA_LOST. Cancelling the call leaves nothing behind.
        """
        demand = Demand(Pool.GENERATION, model, len(request.prompt_token_ids), request.most_output_tokens)
        stream = GenerationStream(
            request,
            place=lambda failed: self._place(request.request_id, replace(demand, excluded=failed)),
            settle=self._admission.settle,
            on_end=self._ended,
            clock=self._clock,
        )
        self._open += 1
        await stream.open()
        return stream

    async def embed(self, model: str, request: EmbeddingRequest) -> EmbeddingResult:
        """The vector of an input. Raises ServeError as `open_generation` does, or as the engine does. Cancelling the call frees it."""
        demand = Demand(Pool.EMBEDDING, model, len(request.prompt_token_ids), 0)
        self._open += 1
        try:
            return await self._embed(demand, request)
        finally:
            self._ended()

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

    async def _embed(self, demand: Demand, request: EmbeddingRequest) -> EmbeddingResult:
        admission_s = 0.0
        while True:
            asked_s = self._clock()
            placement = await self._place(request.request_id, demand)
            admission_s += self._clock() - asked_s
            lease, link = placement.lease, placement.link
            try:
                result = await link.embed(lease.lease_id, request)
                return replace(result, admission_s=admission_s, replica_id=lease.replica_id)
            except ServeError as error:
                if event_of_failure(error, placement.failed) is not Event.MOVABLE:
                    raise
                demand = replace(demand, excluded=(*placement.failed, lease.replica_id))
            finally:
                link.cancel(lease.lease_id)
                self._admission.settle(lease)

    async def _place(self, request_id: str, demand: Demand) -> Placement:
        """Leases a replica whose link is up; one that cannot be reached has failed the request. Raises ServeError."""
        while True:
            lease = await self._admission.lease(demand)
            try:
                link = await self._links.up(lease.replica_id, self._link_timeout_s)
            except ServeError as error:
                self._admission.settle(lease)
                if event_of_failure(error, demand.excluded) is not Event.MOVABLE:
                    raise
                demand = replace(demand, excluded=(*demand.excluded, lease.replica_id))
            except BaseException:
                self._admission.settle(lease)
                raise
            else:
                _log.info("request_placed", request_id=request_id, replica_id=lease.replica_id, failed_replicas=demand.excluded)
                return Placement(lease, link, demand.excluded)

    def _ended(self) -> None:
        self._open -= 1

    def _announce_change(self) -> None:
        self._admission.on_links_changed()
        self._changed.set()

    # The router

    def _hello(self) -> pb.ConnectGatewayRequest:
        return self._admission.hello()

    def _on_response(self, response: pb.ConnectGatewayResponse) -> None:
        match response.WhichOneof("message"):
            case "admit":
                self._admission.on_answer(response.admit)
            case "replicas":
                self._links.update(wire.replicas_from_proto(response.replicas))
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
