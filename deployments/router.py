"""The router as a Serve deployment, and what there is one of in a cluster beside it: scaling, and the job controller."""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from deployments.jobs.controller.controller import open_controller
from deployments.jobs.controller.ray_runs import RayRuns
from deployments.links import link_tls
from deployments.process_tuning import tune_process
from deployments.scaling import loop_of, waking_lanes
from neox_serve.core.tenancy.quota import Spent
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.link.streams import stop_task
from neox_serve.router.server import RouterServer
from neox_serve.settings import restore
from neox_serve.telemetry import logs
from neox_serve.telemetry.tracing import Tracing
from neox_serve.tenancy.platform import spent_recently

_ANSWER_S = 5.0


class _Quotas:
    """The router's quotas, for the controller's thread: the ledger is the event loop's alone."""

    def __init__(self, server: RouterServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()

    def charge(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        self._loop.call_soon_threadsafe(self._server.restore, spent)

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        async def asked() -> tuple[str, ...]:
            return self._server.ledger.used_up(tenant.name, tenant.quotas, self._server.wall_clock())

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(_ANSWER_S)


class RouterDeployment:
    """Holds the one RouterServer of the cluster."""

    async def __init__(self, settings_values: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._to_end = AsyncExitStack()
        settings = restore(settings_values)
        logs.configure(settings.log, "router")
        self._server = RouterServer(
            settings=settings.router,
            metrics=settings.metrics,
            clock=time.monotonic,
            rng=random.Random(),
            tls=link_tls(settings.links),
            tracing=Tracing(settings.tracing, "router"),
            waking=waking_lanes(settings),
        )
        self._server.restore(await spent_recently(settings))
        await self._server.start()
        tune_process()
        self._to_end.push_async_callback(self._server.stop)
        if (scaling := loop_of(settings, self._server, time.time)) is not None:
            self._keep_running(scaling.run(settings.scaling.interval_s))
        controller = await self._to_end.enter_async_context(open_controller(settings, RayRuns(), _Quotas(self._server)))
        self._keep_running(controller.run())

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        self._to_end.push_async_callback(stop_task, asyncio.ensure_future(work))

    async def address(self) -> str:
        """host:port of the router's links, for gateways and replicas."""
        return self._server.address

    async def __del__(self) -> None:
        await self._to_end.aclose()
