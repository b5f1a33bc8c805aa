"""A replica's two links: it serves its engine to gateways, and registers with the router and reports its phase and load."""

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import Callable
from random import Random

import structlog

from neox_serve.core.cluster import Replica, ReplicaLoad, ReplicaPhase
from neox_serve.core.errors import ServeError
from neox_serve.core.types import Pool
from neox_serve.engine.protocol import Engine
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.engine_link_pb2_grpc import add_EngineLinkServiceServicer_to_server
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import LinkTls, bind, internal_server
from neox_serve.link.router_link_client import METRICS_INTERVAL_S, ResolveRouter, RouterLink
from neox_serve.link.streams import repeat, stop_task
from neox_serve.replica.block_reporter import BlockReporter
from neox_serve.replica.link_server import EngineLinkServer
from neox_serve.settings.cluster import TracingSettings
from neox_serve.telemetry.tracing import Tracing
from neox_serve.wire import replica_messages

_log = structlog.get_logger(__name__)

_RATE_WINDOW_S = 2.0
"""Window of output_tokens_per_second. Load reports are sent several times a second; engine steps may be less frequent."""
_BATCH_S = 0.02
"""How long a change of the prefix cache waits for others; less than an engine step of a large model."""
_STOP_GRACE_S = 0.5
"""Time for the last frames to be sent."""


class ReplicaServer:
    """Serves a started engine. It registers with the router once it listens, and again whenever a router comes back.

    host: interface to listen on. max_requests: maximum number of requests that the router sends at a time. resolve_router: returns the
    router's address. load_interval_s: interval between load reports. clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        engine: Engine,
        pool: Pool,
        model: str,
        host: str,
        max_requests: int,
        resolve_router: ResolveRouter,
        load_interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        tls: LinkTls | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tls = tls
        self._tracing = tracing or Tracing(TracingSettings(), "engine")
        self.replica_id = f"{pool}-{uuid.uuid4().hex[:8]}"
        self.address = ""
        self._engine = engine
        self._pool = pool
        self._model = model
        self._host = host
        self._max_requests = max_requests
        self._load_interval_s = load_interval_s
        self._clock = clock
        self._phase = ReplicaPhase.READY
        self._rate = _Rate()
        self._next_metrics_s = 0.0
        self._server = internal_server()
        self._links = EngineLinkServer(engine=engine, replica_id=self.replica_id, max_requests=max_requests, tracing=self._tracing)
        self._router = RouterLink[pb.ConnectReplicaRequest, pb.ConnectReplicaResponse](
            resolve_router=resolve_router,
            connect=lambda channel: RouterLinkServiceStub(channel).ConnectReplica(),
            hello=lambda: replica_messages.replica_hello(self._describe()),
            response_type=pb.ConnectReplicaResponse,
            on_response=self._on_response,
            on_lost=lambda: self._blocks.stop(),  # noqa: PLW0108 - created below, because it sends on this link
            rng=Random(),
            tls=tls,
        )
        self._blocks = BlockReporter(engine.block_ledger, self._router.send, _soon)
        self._reports: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self.left = False
        """Whether the replica has drained at the router's request, so that it can be replaced."""

    async def start(self) -> None:
        """Starts to listen and to register. Does not wait for the router. Raises OSError if the address cannot be bound."""
        add_EngineLinkServiceServicer_to_server(self._links, self._server)
        self.address = bind(self._server, self._host, 0, self._tls)
        await self._server.start()
        self._router.start()
        self._reports = asyncio.ensure_future(repeat(self._report, self._load_interval_s))
        _log.info("replica_started", replica_id=self.replica_id, address=self.address)

    @property
    def requests_in_flight(self) -> int:
        """Number of requests accepted and not ended."""
        return self._links.requests_in_flight

    @property
    def router_connected(self) -> bool:
        """Whether this replica is registered with a router."""
        return self._router.connected

    def load(self) -> dict[str, float]:
        """Returns the replica's load as numbers by name, for autoscaling."""
        stats = self._engine.stats()
        return {
            "requests_in_flight": float(self.requests_in_flight),
            "running_requests": float(stats.running_requests),
            "waiting_requests": float(stats.waiting_requests),
            "kv_usage_fraction": stats.kv_usage_fraction,
            "output_tokens_per_second": self._rate.per_second,
        }

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests, reports the phase to the router, and waits until all requests have ended, for at most timeout_s."""
        self._links.draining = True
        self._enter(ReplicaPhase.DRAINING)
        try:
            async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
                await self._links.until_idle()
        except TimeoutError:
            _log.warning("drain_timed_out", replica_id=self.replica_id, requests_left=self.requests_in_flight)

    def _on_response(self, response: pb.ConnectReplicaResponse) -> None:
        if response.drain:
            if self._leaving is None:
                self._leaving = asyncio.ensure_future(self._leave())
        else:
            self._blocks.report_all()

    async def _leave(self) -> None:
        """Drains for as long as it takes, then marks the replica for replacement."""
        await self.drain(math.inf)
        self.left = True

    async def stop(self) -> None:
        """Closes all links and aborts requests in flight. Does not stop the engine."""
        await stop_task(self._reports)
        await stop_task(self._leaving)
        await self._router.close()
        await self._links.close()
        await self._server.stop(_STOP_GRACE_S)
        await asyncio.to_thread(self._tracing.close)

    def _describe(self) -> Replica:
        return Replica(self.replica_id, self._pool, self._model, self.address, self._max_requests, self._phase, self._blocks.block_tokens)

    def _enter(self, phase: ReplicaPhase) -> None:
        before, self._phase = self._phase, self._describe().moved_to(phase).phase
        if self._phase is not before:
            _log.info("replica_phase_changed", replica_id=self.replica_id, phase=self._phase)
            self._router.send(replica_messages.replica_phase(self._phase))

    async def _report(self) -> None:
        await self._check_engine()
        self._router.send(replica_messages.replica_load(self._measure()))
        if self._clock() >= self._next_metrics_s and self._router.connected:
            self._next_metrics_s = self._clock() + METRICS_INTERVAL_S
            self._router.send(replica_messages.replica_metrics(self._engine.metrics_text()))

    async def _check_engine(self) -> None:
        try:
            await self._engine.check_health()
        except ServeError as error:
            _log.error("engine_unhealthy", replica_id=self.replica_id, cause=str(error))
            self._enter(ReplicaPhase.UNHEALTHY)
        else:
            if self._phase is ReplicaPhase.UNHEALTHY:
                self._enter(ReplicaPhase.READY)

    def _measure(self) -> ReplicaLoad:
        stats = self._engine.stats()
        self._rate.add(self._clock(), stats.output_tokens_total)
        return ReplicaLoad(
            running_requests=stats.running_requests,
            waiting_requests=stats.waiting_requests,
            kv_usage_fraction=stats.kv_usage_fraction,
            output_tokens_per_second=self._rate.per_second,
            adapters=stats.adapters,
            prefill_backlog_tokens=stats.prefill_backlog_tokens,
        )


def _soon(action: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(_BATCH_S, action)


class _Rate:
    """Growth rate of a total over the last _RATE_WINDOW_S seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, total: int) -> None:
        """Adds a reading of the total."""
        self._samples.append((now_s, total))
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - _RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def per_second(self) -> float:
        """Growth per second; 0 before the second reading."""
        if len(self._samples) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
