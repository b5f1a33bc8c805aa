"""A gateway process as a Serve deployment. All gateways of a node share one port."""

import os
import uuid
from contextlib import AsyncExitStack
from typing import Any

from deployments.links import link_host, link_tls
from deployments.lookup import router_lookup
from deployments.process_tuning import tune_process
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.gateway.server.idempotency_link import IdempotencyLinkServer
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.model.model_files import locate_tokenizer, read_facts
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings.slices import GatewayProcessSettings
from neox_serve.telemetry import logs
from neox_serve.tenancy.platform import Platform


class GatewayDeployment:
    """Holds one GatewayServer and the dispatcher that connects it to router and replicas."""

    async def __init__(self, settings_values: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._cleanup = AsyncExitStack()
        settings = GatewayProcessSettings.read(settings_values)
        logs.configure(settings.log, "gateway")
        gateway_id = f"gateway-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder = locate_tokenizer(settings.served.model.source, settings.served.model.revision)
        dispatcher = LinkDispatcher(
            gateway_id=gateway_id, resolve_router=router_lookup(), metrics_text=self._metrics_text, tls=link_tls(settings.links)
        )
        platform = await Platform.open(settings, gateway_id)
        self._cleanup.push_async_callback(platform.close)
        self._server = GatewayServer(
            settings=settings,
            gateway_id=gateway_id,
            dispatcher=dispatcher,
            tokenizer=Tokenizer(folder),
            facts=read_facts(folder),
            platform=platform,
            link_tls=link_tls(settings.links),
        )
        idempotency_link = IdempotencyLinkServer(self._server.idempotency_cache, link_tls(settings.links))
        await idempotency_link.start(link_host(settings.link_host))
        self._cleanup.push_async_callback(idempotency_link.stop)
        dispatcher.gateway_link_address = idempotency_link.address
        await dispatcher.start()
        self._cleanup.push_async_callback(dispatcher.close)
        await self._server.start()
        tune_process()
        self._cleanup.push_async_callback(self._server.stop)
        self._cleanup.push_async_callback(self._server.drain, settings.gateway.drain_timeout_s)

    async def __del__(self) -> None:
        await self._cleanup.aclose()

    def _metrics_text(self) -> str:
        return self._server.metrics_text()
