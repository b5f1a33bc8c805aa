"""An engine replica as a Serve deployment. The generation pool and the embedding pool are one deployment of this class each."""

import os
from contextlib import AsyncExitStack
from typing import Any

from autoscaling.ray_adapter import REQUESTS_METRIC
from deployments.links import link_host, link_tls
from deployments.lookup import router_lookup
from deployments.process_tuning import tune_process
from neox_serve.engine.factory import engine_environment, start_engine
from neox_serve.replica.server import ReplicaServer
from neox_serve.settings.slices import ReplicaProcessSettings
from neox_serve.telemetry import logs
from neox_serve.telemetry.tracing import Tracing


class EngineDeployment:
    """Holds one engine and the server that offers it to gateways.

    Serve does not see the engine's requests, so the replica drains itself before it exits.
    """

    async def __init__(self, settings_values: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._cleanup = AsyncExitStack()
        settings = ReplicaProcessSettings.read(settings_values)
        pool, replicas = settings.engine.pool, settings.engine.replicas
        component = f"{pool.value}-engine"
        logs.configure(settings.engine.log, component)
        os.environ.update(engine_environment(settings.engine))
        self._engine = await start_engine(settings.engine)
        self._cleanup.push_async_callback(self._engine.close)
        self._server = ReplicaServer(
            engine=self._engine,
            pool=pool,
            model=settings.engine.model.name,
            host=link_host(settings.link_host),
            max_requests=replicas.max_requests,
            resolve_router=router_lookup(),
            load_interval_s=settings.load_report_interval_s,
            tls=link_tls(settings.links),
            tracing=Tracing(settings.tracing, component),
        )
        await self._server.start()
        tune_process()
        self._cleanup.push_async_callback(self._server.stop)
        self._cleanup.push_async_callback(self._server.drain, replicas.drain_timeout_s)

    async def check_health(self) -> None:
        """Raises if the engine is dead or an operator has drained this replica. Serve then replaces it."""
        if self._server.left:
            raise RuntimeError("drained by an operator")
        await self._engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the metrics that the autoscaling policy gets of this replica."""
        return {REQUESTS_METRIC: float(self._server.requests_in_flight)}

    async def __del__(self) -> None:
        await self._cleanup.aclose()
