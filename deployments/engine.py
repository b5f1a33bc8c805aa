"""An engine replica as a Serve deployment; the generation and the embedding pool each are one deployment of this class."""

import os
from contextlib import AsyncExitStack
from typing import Any

from autoscaling.ray_adapter import REQUESTS_METRIC
from deployments.links import link_host, link_tls
from deployments.lookup import router_lookup
from deployments.process_tuning import tune_process
from neox_serve.core.types import Pool
from neox_serve.engine.factory import engine_environment, start_engine
from neox_serve.replica.server import ReplicaServer
from neox_serve.settings import pool_settings, restore
from neox_serve.telemetry import logs
from neox_serve.telemetry.tracing import Tracing


class EngineDeployment:
    """Holds one engine and the server that offers it to gateways. Serve sees none of its requests, so it drains itself before it exits."""

    async def __init__(self, pool: str, settings_values: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._to_end = AsyncExitStack()
        settings = restore(settings_values)
        logs.configure(settings.log, f"{pool}-engine")
        replicas = pool_settings(settings, Pool(pool)).replicas
        os.environ.update(engine_environment(Pool(pool), settings))
        self._engine = await start_engine(Pool(pool), settings)
        self._to_end.push_async_callback(self._engine.close)
        self._server = ReplicaServer(
            engine=self._engine,
            pool=Pool(pool),
            model=settings.model.name,
            host=link_host(settings.router.host),
            max_requests=replicas.max_requests,
            resolve_router=router_lookup(),
            load_interval_s=settings.router.load_report_interval_s,
            tls=link_tls(settings.links),
            tracing=Tracing(settings.tracing, f"{pool}-engine"),
        )
        await self._server.start()
        tune_process()
        self._to_end.push_async_callback(self._server.stop)
        self._to_end.push_async_callback(self._server.drain, replicas.drain_timeout_s)

    async def check_health(self) -> None:
        """Raises where the engine is dead, or an operator has had this replica drained; Serve then replaces it."""
        if self._server.left:
            raise RuntimeError("drained by an operator")
        await self._engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy sees of this replica."""
        return {REQUESTS_METRIC: float(self._server.requests_in_flight)}

    async def __del__(self) -> None:
        await self._to_end.aclose()
