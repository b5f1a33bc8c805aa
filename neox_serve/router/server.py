"""The router process: the streams of gateways and replicas around `core.scheduling`, which makes all decisions."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from random import Random

import grpc
import structlog
from grpc import aio

from neox_serve.core.cluster import ClusterView, Replica, ScalingView
from neox_serve.core.scheduling.admissions import Admissions
from neox_serve.core.scheduling.bulk_share import BulkLimits
from neox_serve.core.scheduling.cluster_state import ClusterState
from neox_serve.core.scheduling.fair_queue import FairQueue, Lane, QueueLimits
from neox_serve.core.scheduling.pool_demand import PoolDemand
from neox_serve.core.scheduling.request_owners import RequestOwners
from neox_serve.core.tenancy.quota import QuotaLedger, Spent
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceServicer, add_RouterLinkServiceServicer_to_server
from neox_serve.link.channels import LinkTls, bind, internal_server
from neox_serve.link.streams import Readable, SendQueue, StreamEndedError, read, repeat, steady_wall_clock, stop_task, until_one_ends
from neox_serve.router.admissions import AdmissionService
from neox_serve.router.announcements import ReplicaAnnouncer
from neox_serve.router.metrics import RouterMetrics
from neox_serve.router.metrics_page import Labels, MetricsPage
from neox_serve.router.quotas import QuotaService
from neox_serve.settings.cluster import MetricsSettings, RouterSettings, TracingSettings
from neox_serve.telemetry.tracing import Tracing
from neox_serve.wire import replica_messages
from neox_serve.wire import router_messages as wire
from neox_serve.wire.engine_messages import SCHEMA_VERSION

_log = structlog.get_logger(__name__)

_TICK_S = 0.1
"""Interval of `_tick`, which expires what has waited too long."""
_MAX_TENANTS_SHOWN = 100
"""Number of tenants in a cluster view."""
_REPEAT_MEMORY_S = 60.0
"""How long gateways keep responses for retries, by default. A gateway that has dropped one says so."""

GatewayContext = aio.ServicerContext[pb.ConnectGatewayRequest, pb.ConnectGatewayResponse]
ReplicaContext = aio.ServicerContext[pb.ConnectReplicaRequest, pb.ConnectReplicaResponse]


@dataclass(frozen=True, slots=True)
class _Gateway:
    """A gateway's stream."""

    gateway_id: str
    connection: int
    """Number of the stream, unique in this process."""
    send_queue: SendQueue[pb.ConnectGatewayResponse]
    gateway_link_address: str
    """host:port of its GatewayLinkService; empty if it has none."""


def _cluster_state(settings: RouterSettings, started_s: float, rng: Random) -> ClusterState:
    return ClusterState(
        grace_s=settings.peer_grace_s,
        started_s=started_s,
        rng=rng,
        policy=settings.policy,
        imbalance_threshold_tokens=settings.imbalance_threshold_tokens,
    )


def _admissions(settings: RouterSettings, state: ClusterState, waking: frozenset[Lane], now_s: float) -> Admissions:
    queue = QueueLimits(settings.max_queued_requests, settings.max_queued_tokens, settings.max_queue_wait_s)
    bulk = BulkLimits(settings.max_bulk_requests_per_replica, settings.max_bulk_requests_per_replica_contended)
    return Admissions(state, queue, waking=waking, bulk=bulk, now_s=now_s)


class RouterServer(RouterLinkServiceServicer):
    """Serves RouterLinkService and the cluster's metrics page.

    clock: monotonic seconds. wall_clock: seconds since the epoch, never going back; derived from `clock` by default. rng: for the routing
    policy and the quotas. waking: lanes that may have no replica until a request comes.
    """

    def __init__(
        self,
        *,
        settings: RouterSettings,
        metrics: MetricsSettings,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] | None = None,
        rng: Random | None = None,
        tls: LinkTls | None = None,
        tracing: Tracing | None = None,
        waking: frozenset[Lane] = frozenset(),
    ) -> None:
        self._tls = tls
        self._tracing = tracing or Tracing(TracingSettings(), "router")
        self.address = ""
        """host:port for peers; empty until `start`."""
        self._settings = settings
        self._clock = clock
        started_s, rng = clock(), rng or Random()
        self._state = _cluster_state(settings, started_s, rng)
        self._metrics = RouterMetrics()
        self._requests = AdmissionService(
            self._state,
            _admissions(settings, self._state, waking, started_s),
            clock=clock,
            metrics=self._metrics,
            tracing=self._tracing,
            notify=self._notify,
            before_grant=lambda replica_id: self._announcer.before_grant(replica_id),  # noqa: PLW0108 - created below
        )
        self._wall_clock = wall_clock or steady_wall_clock(clock)
        self._quotas = QuotaService(
            clock=clock, wall_clock=self._wall_clock, opens_s=started_s + settings.peer_grace_s, metrics=self._metrics, rng=rng
        )
        self._announcer = ReplicaAnnouncer(self._state, [pool for pool, _ in waking], self._broadcast)
        self._scaling: tuple[ScalingView, ...] = ()
        self._connections = count(1)
        self._gateways: dict[int, _Gateway] = {}
        self._owners = RequestOwners(_REPEAT_MEMORY_S)
        self._replica_queues: dict[str, SendQueue[pb.ConnectReplicaResponse]] = {}
        self._texts: dict[Labels, str] = {}
        self._labels: Labels = (("component", "router"), ("instance", f"router-{uuid.uuid4().hex[:8]}"))
        self._page = MetricsPage(host=metrics.host, port=metrics.port, texts=self._all_texts) if metrics.enabled else None
        self._server = internal_server()
        self._ticks: asyncio.Task[None] | None = None

    @property
    def state(self) -> ClusterState:
        """Peers and leases; for reading only."""
        return self._state

    @property
    def queue(self) -> FairQueue:
        """The requests that wait for a replica; for reading only."""
        return self._requests.admissions.queue

    def demand(self) -> dict[Pool, PoolDemand]:
        """Returns the demand on each pool since the previous call."""
        return self._requests.admissions.demand(self._clock())

    def show_scaling(self, scaling: tuple[ScalingView, ...]) -> None:
        """Takes the scaling decisions of all pools, for operators and metrics."""
        self._scaling = scaling
        self._metrics.show_scaling(scaling)

    def wall_clock(self) -> float:
        """Returns seconds since the epoch, by the clock of the quota ledger."""
        return self._wall_clock()

    @property
    def ledger(self) -> QuotaLedger:
        """What tenants used of their quotas; for reading only."""
        return self._quotas.ledger

    def restore(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        """Takes what was used before this router started, by gateway id. The hello of a gateway that still runs replaces its entry."""
        self._quotas.restore(spent)

    @property
    def metrics_address(self) -> str:
        """host:port of the metrics page; empty if there is none."""
        return self._page.address if self._page else ""

    async def start(self) -> None:
        """Starts to listen. Raises OSError if an address cannot be bound."""
        add_RouterLinkServiceServicer_to_server(self, self._server)
        self.address = bind(self._server, self._settings.host, self._settings.port, self._tls)
        if self._page:
            self._page.start()
        await self._server.start()
        self._ticks = asyncio.ensure_future(repeat(self._tick, _TICK_S))
        _log.info("router_started", address=self.address, metrics=self.metrics_address)

    async def stop(self) -> None:
        """Ends all streams and stops listening. Peers look for the next router themselves."""
        await stop_task(self._ticks)
        self._announcer.stop()
        await self._server.stop(None)
        if self._page:
            await asyncio.to_thread(self._page.stop)
        await asyncio.to_thread(self._tracing.close)

    # Gateways

    async def ConnectGateway(  # type: ignore[override]  # noqa: N802  a coroutine, because a generator's `finally` would run later
        self, request_iterator: object, context: GatewayContext
    ) -> None:
        """Serves one gateway's stream until it ends."""
        try:
            hello = (await read(context, pb.ConnectGatewayRequest)).hello
            await _check_schema(hello.schema_version, context)
            await self._serve_gateway(hello, context)
        except StreamEndedError as ended:
            _log.info("gateway_stream_ended", cause=str(ended))

    async def _serve_gateway(self, hello: pb.GatewayHello, context: GatewayContext) -> None:
        gateway = _Gateway(hello.gateway_id, next(self._connections), SendQueue(), hello.gateway_link_address)
        self._register_gateway(gateway, hello)
        try:
            await until_one_ends(self._receive_from_gateway(gateway, context), gateway.send_queue.write_to(context))
        finally:
            _log.info("gateway_lost", gateway_id=gateway.gateway_id)
            del self._gateways[gateway.connection]
            last = not any(other.gateway_id == gateway.gateway_id for other in self._gateways.values())
            self._requests.drop(gateway.gateway_id, gateway.connection, last=last)
            self._quotas.drop(gateway.send_queue)
            self._state.disconnect_gateway(gateway.gateway_id, gateway.connection, self._clock())

    def _register_gateway(self, gateway: _Gateway, hello: pb.GatewayHello) -> None:
        leases = [wire.lease_from_proto(lease) for lease in hello.leases]
        self._state.connect_gateway(gateway.gateway_id, leases, gateway.connection, self._clock())
        self._quotas.register(gateway.gateway_id, hello)
        self._gateways[gateway.connection] = gateway
        gateway.send_queue.put(self._announcer.message())
        _log.info("gateway_registered", gateway_id=gateway.gateway_id, leases=len(leases))

    async def _receive_from_gateway(self, gateway: _Gateway, stream: Readable[pb.ConnectGatewayRequest]) -> None:
        while True:
            request = await read(stream, pb.ConnectGatewayRequest)
            match request.WhichOneof("message"):
                case "admit":
                    self._admit(gateway, request.admit)
                case "settlements":
                    self._settle(gateway, request.settlements)
                case "reserve":
                    self._quotas.reserve(gateway.gateway_id, gateway.send_queue, request.reserve)
                case "settled_reservations":
                    self._quotas.settle(gateway.gateway_id, request.settled_reservations)
                case "drain_replica_id":
                    self._drain(gateway, request.drain_replica_id)
                case "estimate":
                    self._estimate(gateway, request.estimate)
                case "adopted":
                    self._state.adopt(gateway.gateway_id, [wire.lease_from_proto(lease) for lease in request.adopted.leases])
                case "metrics":
                    self._texts[("component", "gateway"), ("instance", gateway.gateway_id)] = request.metrics.text
                case "view":
                    gateway.send_queue.put(wire.view_to_proto(request.view.view_id, self._view()))

    def _admit(self, gateway: _Gateway, admit: pb.AdmitRequest) -> None:
        if not self._owned_elsewhere(gateway, admit):
            demand = wire.demand_from_proto(admit)
            self._requests.admit((gateway.gateway_id, admit.lease_id), demand, gateway.connection)

    def _settle(self, gateway: _Gateway, message: pb.Settlements) -> None:
        settled = wire.settled_from_proto(message)
        for one in settled:
            self._owners.settle(gateway.gateway_id, one.lease_id, self._clock())
        self._requests.settle(gateway.gateway_id, settled)

    def _drain(self, gateway: _Gateway, replica_id: str) -> None:
        if (send_queue := self._replica_queues.get(replica_id)) is not None:
            _log.info("replica_drain_requested", replica_id=replica_id, gateway_id=gateway.gateway_id)
            send_queue.put(replica_messages.drain())

    def _owned_elsewhere(self, gateway: _Gateway, admit: pb.AdmitRequest) -> bool:
        """Returns whether another gateway owns the request. If so, replies with that gateway's address."""
        if not admit.idempotency_key or not gateway.gateway_link_address:
            return False
        owner_id = self._owners.claim(admit.idempotency_key, gateway.gateway_id, admit.lease_id, takes_over=admit.takes_over)
        owner = next((other for other in self._gateways.values() if other.gateway_id == owner_id), None) if owner_id else None
        if owner is None:
            return False
        gateway.send_queue.put(wire.owned_elsewhere(admit.lease_id, owner.gateway_link_address))
        return True

    def _view(self) -> ClusterView:
        return replace(
            self._state.view(self._clock()), tenants=self._requests.admissions.tenants(_MAX_TENANTS_SHOWN), scaling=self._scaling
        )

    def _estimate(self, gateway: _Gateway, request: pb.EstimateRequest) -> None:
        demand = wire.demand_from_proto(request.admit)
        wait_s = self._requests.admissions.expected_wait_s(demand, self._clock())
        gateway.send_queue.put(wire.estimated(request.estimate_id, wait_s, self._quotas.state(demand.terms.tenant)))

    def _notify(self, gateway_id: str, message: pb.ConnectGatewayResponse) -> None:
        """Sends a message on a gateway's newest stream. Drops it if there is none, because the gateway asks again when it is back."""
        queues = [gateway.send_queue for gateway in self._gateways.values() if gateway.gateway_id == gateway_id]
        if queues:
            queues[-1].put(message)

    def _broadcast(self, message: pb.ConnectGatewayResponse) -> None:
        for gateway in self._gateways.values():
            gateway.send_queue.put(message)

    # Replicas

    async def ConnectReplica(  # type: ignore[override]  # noqa: N802  as above
        self, request_iterator: object, context: ReplicaContext
    ) -> None:
        """Serves one replica's stream until it ends."""
        try:
            hello = (await read(context, pb.ConnectReplicaRequest)).hello
            await _check_schema(hello.schema_version, context)
            await self._serve_replica(replica_messages.replica_from_proto(hello.replica), context)
        except StreamEndedError as ended:
            _log.info("replica_stream_ended", cause=str(ended))

    async def _serve_replica(self, replica: Replica, context: ReplicaContext) -> None:
        connection, send_queue = next(self._connections), SendQueue[pb.ConnectReplicaResponse]()
        self._replica_queues[replica.replica_id] = send_queue
        self._state.connect_replica(replica, connection, self._clock())
        _log.info("replica_registered", replica_id=replica.replica_id, address=replica.address, phase=replica.phase)
        self._replica_changed()
        try:
            send_queue.put(replica_messages.registered())
            await until_one_ends(self._receive_from_replica(replica, connection, context), send_queue.write_to(context))
        finally:
            if self._replica_queues.get(replica.replica_id) is send_queue:
                del self._replica_queues[replica.replica_id]
            _log.info("replica_lost", replica_id=replica.replica_id)
            self._state.disconnect_replica(replica.replica_id, connection, self._clock())

    async def _receive_from_replica(self, replica: Replica, connection: int, stream: ReplicaContext) -> None:
        labels: Labels = (("component", "engine"), ("instance", replica.replica_id), ("pool", replica.pool.value))
        while True:
            request = await read(stream, pb.ConnectReplicaRequest)
            match request.WhichOneof("message"):
                case "load":
                    self._state.report_load(replica.replica_id, replica_messages.load_from_proto(request.load))
                case "phase":
                    self._state.change_phase(replica.replica_id, replica_messages.phase_from_proto(request.phase))
                    self._replica_changed()
                case "metrics":
                    self._texts[labels] = request.metrics.text
                case "block_news":
                    news = replica_messages.block_news_from_proto(request.block_news)
                    if not self._state.take_block_news(replica.replica_id, connection, news):
                        _log.warning("block_news_missed", replica_id=replica.replica_id)
                        self._metrics.missed_block_news()
                        self._replica_queues[replica.replica_id].put(replica_messages.restart_block_news())

    def _replica_changed(self) -> None:
        """Schedules the replica list for all gateways, and retries requests that wait for a replica."""
        self._announcer.schedule()
        self._requests.try_again()

    # Background

    async def _tick(self) -> None:
        now_s = self._clock()
        expired = self._state.expire(now_s)
        if expired:
            self._requests.admissions.forget(expired, self._clock())
            self._quotas.forget(expired)
            for peer in expired:
                self._owners.drop_gateway(peer)
            _log.info("peers_forgotten", peers=expired)
            self._texts = {labels: text for labels, text in self._texts.items() if dict(labels)["instance"] not in expired}
        self._announcer.send()
        self._quotas.tick()
        self._owners.expire(now_s)
        self._requests.expire()
        self._requests.try_again()
        self._metrics.show(self._state, self._requests.admissions)

    def _all_texts(self) -> dict[Labels, str]:
        """Returns all metrics texts. Called from the page's thread; the interpreter copies the dict in one step."""
        return {self._labels: self._metrics.text(), **self._texts}


async def _check_schema(version: int, context: GatewayContext | ReplicaContext) -> None:
    if version != SCHEMA_VERSION:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION, f"schema version {version} does not match this router's version {SCHEMA_VERSION}"
        )
