"""The public gRPC server, as one object for a process or a test."""

import asyncio
import time
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.usage import UsageRecord
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Context, Method
from neox_serve.gateway.server.decoding import TRANSPORT_LIMIT_FACTOR
from neox_serve.gateway.server.health import Condition, Health, conditions, serving
from neox_serve.gateway.server.idempotency import Idempotency, IdempotencyCache
from neox_serve.gateway.server.idempotency_link import IdempotencyLinkClient
from neox_serve.gateway.server.identity import Identity
from neox_serve.gateway.server.in_flight import DRAINING_RETRY_S
from neox_serve.gateway.server.jwt_tokens import JwtVerifier
from neox_serve.gateway.server.methods import methods
from neox_serve.gateway.server.metrics import GatewayMetrics
from neox_serve.gateway.server.runner import CallRunner
from neox_serve.gateway.server.tls import TlsFiles, server_context
from neox_serve.link.channels import LinkTls
from neox_serve.model.facts import ModelFacts
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import SettingsError, allows_anonymous
from neox_serve.settings.gateway import GatewaySettings
from neox_serve.settings.slices import GatewayProcessSettings
from neox_serve.telemetry.tracing import Tracing
from neox_serve.tenancy.platform import Platform
from neox_serve.transport.connection import Limits
from neox_serve.transport.server import Server

log = structlog.get_logger(__name__)

_WATCH_INTERVAL_S = 0.1
"""How often health is updated and stalled clients are looked for. Both only read memory."""
_CREDENTIALS_INTERVAL_S = 0.5
"""How often certificates, credentials and adapters are checked, so that a change takes effect within a second."""
_STATUS_TIMEOUT_S = 1.0
"""Time that interrupted calls get to send their status."""


class GatewayServer:
    """Serves the public API on one port. Call `start`, then `drain`, then `stop`."""

    def __init__(
        self,
        *,
        settings: GatewayProcessSettings,
        gateway_id: str,
        dispatcher: Dispatcher,
        tokenizer: Tokenizer,
        facts: ModelFacts,
        platform: Platform | None = None,
        link_tls: LinkTls | None = None,
    ) -> None:
        """Creates a server that does not listen yet.

        `platform` is the database of tenants. Without it, all callers are anonymous, there are no AdminService and BatchService, and usage
        is not recorded. `link_tls` secures connections to other gateways.
        """
        self._settings = settings.gateway
        self._dispatcher = dispatcher
        self._metrics = GatewayMetrics(dispatcher)
        self._tokens = JwtVerifier(settings.access.jwt, time.monotonic) if settings.access.jwt else None
        identity = Identity(
            anonymous_allowed=allows_anonymous(settings.access, settings.gateway),
            directory=platform.directory if platform else None,
            tokens=self._tokens,
            clock=time.time,
        )
        self._tracing = Tracing(settings.tracing, "gateway")
        limits = settings.served.limits
        self.idempotency_cache = IdempotencyCache(
            window_s=limits.idempotency_window_s, max_bytes=limits.idempotency_max_bytes, clock=time.monotonic
        )
        self._runner = CallRunner(
            gateway_id=gateway_id,
            settings=settings.gateway,
            metrics=self._metrics,
            identity=identity,
            note_usage=platform.writer.put if platform else _discard_usage,
            tracing=self._tracing,
            idempotency=Idempotency(self.idempotency_cache, IdempotencyLinkClient(link_tls).follow),
        )
        self._served = Served.from_settings(settings.served, facts)
        self._pools = tuple(self._served.limits)
        self._health = Health(self._conditions)
        self._methods = methods(
            gateway_id=gateway_id,
            served=self._served,
            tokenizer=tokenizer,
            dispatcher=dispatcher,
            conditions=self._conditions,
            draining=lambda: self._runner.draining,
            platform=platform,
        )
        self._request_bytes = limits.request_bytes
        self._server: Server | None = None
        self._tls_files = TlsFiles(settings.gateway)
        self._background: list[asyncio.Task[None]] = []
        self.port = 0

    @property
    def requests_in_flight(self) -> int:
        """Number of calls that count against the concurrency limit and have not ended."""
        return self._runner.calls_in_flight

    @property
    def connections(self) -> int:
        """Number of open client connections."""
        return self._server.connections if self._server else 0

    def metrics_text(self) -> str:
        """Returns the metrics in the Prometheus text format."""
        return self._metrics.text()

    async def start(self) -> None:
        """Starts to listen. Raises SettingsError if the port or the TLS files cannot be used."""
        server = Server(_limits(self._settings, self._request_bytes))
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
        for method in self._methods:
            by_service.setdefault(method.service, {})[method.name] = _handler(method, self._runner)
        for service, handlers in by_service.items():
            server.add_registered_method_handlers(service, handlers)
        registry: Any = server  # generated code accepts only grpc's own server types
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registry)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        names = [*by_service, health_name, reflection.SERVICE_NAME]
        add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add_reflection(reflection.aio.ReflectionServicer(names), registry)
        await self._update_health()
        if self._tokens is not None:
            await self._tokens.refresh()
        self.port = await _listen(server, self._settings)
        self._server = server
        await asyncio.to_thread(self._served.registry.refresh)
        self._background = [asyncio.create_task(loop) for loop in (self._watch(), self._watch_credentials(server))]
        log.info("gateway_started", host=self._settings.host, port=self.port, tls=self._settings.tls_certificate is not None)

    async def drain(self, timeout_s: float) -> None:
        """Refuses new calls with DRAINING and waits for those in flight. Calls that have not ended in time fail with DRAINING too."""
        self._runner.start_draining()
        await self._health.enter_graceful_shutdown()
        log.info("gateway_draining", calls_in_flight=self._runner.calls_in_flight, timeout_s=timeout_s)
        if await self._idle_within(timeout_s):
            return
        log.warning("gateway_drain_timed_out", calls_in_flight=self._runner.calls_in_flight)
        self._runner.interrupt_all(ServeError(Reason.DRAINING, "this gateway has stopped", retry_after_s=DRAINING_RETRY_S))
        await self._idle_within(_STATUS_TIMEOUT_S)

    async def stop(self) -> None:
        """Stops at once. Call `drain` first to let calls finish. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await self.drain(0.0)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await server.stop(_STATUS_TIMEOUT_S)
        await asyncio.to_thread(self._tracing.close)

    async def _idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._runner.idle()
        except TimeoutError:
            return False
        return True

    async def _watch(self) -> None:
        """Updates health, and ends calls whose clients read nothing."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._update_health()
            self._runner.interrupt_stalled(clock())
            await asyncio.sleep(_WATCH_INTERVAL_S)

    async def _watch_credentials(self, server: Server) -> None:
        """Reloads certificates, keys and adapters, and ends calls whose credential was revoked. A failed reload changes nothing."""
        while True:
            await asyncio.sleep(_CREDENTIALS_INTERVAL_S)
            self._runner.interrupt_revoked()
            try:
                if (tls := self._tls_files.reloaded()) is not None:
                    server.use_tls(tls)
                    log.info("certificates_reloaded")
                if self._tokens is not None and self._tokens.refresh_due:
                    await self._tokens.refresh()
                await asyncio.to_thread(self._served.registry.refresh)
            except (SettingsError, OSError) as error:
                log.warning("reload_failed", error=str(error))

    async def _update_health(self) -> None:
        await self._health.update(serving({pool: self._takes_requests(pool) for pool in self._pools}))

    def _takes_requests(self, pool: Pool) -> bool:
        return self._dispatcher.ready_replicas(pool) > 0 or self._dispatcher.may_wake(pool)

    def _conditions(self) -> list[Condition]:
        return conditions(self._dispatcher, self._pools, draining=self._runner.draining)


def _handler(method: Method, runner: CallRunner) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Returns a handler that takes and returns bytes, because this package decodes messages itself to give better errors."""

    async def run(raw: bytes, context: Context) -> bytes:
        return await runner.run(method, raw, context)

    async def run_stream(raw: bytes, context: Context) -> None:
        await runner.run(method, raw, context)

    if method.stream is not None:
        return grpc.unary_stream_rpc_method_handler(run_stream)
    return grpc.unary_unary_rpc_method_handler(run)


async def _listen(server: Server, settings: GatewaySettings) -> int:
    try:
        return await server.start(settings.host, settings.port, server_context(settings))
    except OSError as error:
        raise SettingsError(f"gateway.port: cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error


def _discard_usage(_record: UsageRecord) -> None:
    """Drops a record, for gateways without a database."""


def _limits(settings: GatewaySettings, request_bytes: int) -> Limits:
    return Limits(
        max_message_bytes=TRANSPORT_LIMIT_FACTOR * request_bytes,
        # More streams than requests, so that excess calls arrive and are refused with a reason instead of waiting in their client.
        max_streams=4 * settings.max_concurrent_requests + 100,
    )
