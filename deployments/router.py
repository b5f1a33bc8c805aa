"""The router as a Serve deployment. Its process also runs what exists once per cluster: scaling and the controller of batch jobs."""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from deployments.jobs.controller.controller import JobController, open_controller
from deployments.jobs.controller.ray_runs import RayRuns
from deployments.links import link_tls
from deployments.process_tuning import tune_process
from deployments.scaling import loop_of, waking_lanes
from neox_serve.core.tenancy.quota import Spent
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.link.streams import stop_task
from neox_serve.router.server import RouterServer
from neox_serve.settings.slices import JobControllerSettings, RouterProcessSettings
from neox_serve.telemetry import logs
from neox_serve.telemetry.tracing import Tracing
from neox_serve.tenancy.platform import spent_recently

_QUOTA_TIMEOUT_S = 5.0


class _Quotas:
    """The router's quotas for the job controller, which runs on another thread. The ledger belongs to the event loop."""

    def __init__(self, server: RouterServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()

    def charge(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        """Charges what jobs have used."""
        self._loop.call_soon_threadsafe(self._server.restore, spent)

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        """Returns the names of the tenant's quotas that are used up. Raises TimeoutError if the event loop does not answer."""

        async def ask() -> tuple[str, ...]:
            return self._server.ledger.used_up(tenant.name, tenant.quotas, self._server.wall_clock())

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(_QUOTA_TIMEOUT_S)


class RouterDeployment:
    """Holds the cluster's RouterServer, its scaling loop and its job controller."""

    async def __init__(self, settings_values: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._cleanup = AsyncExitStack()
        self._controller: JobController | None = None
        self._settings = settings = RouterProcessSettings.read(settings_values)
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
        self._cleanup.push_async_callback(self._server.stop)
        if (scaling := loop_of(settings, self._server, time.time)) is not None:
            self._keep_running(scaling.run(settings.scaling.interval_s))

    async def reconfigure(self, job_settings_values: dict[str, Any]) -> None:
        """Starts the job controller, or gives it changed settings. Serve calls this after __init__ and whenever `user_config` changes."""
        jobs = JobControllerSettings.read(job_settings_values)
        if self._controller is not None:
            self._controller.reconfigure(jobs)
            return
        context = open_controller(self._settings, jobs, RayRuns(), _Quotas(self._server))
        self._controller = await self._cleanup.enter_async_context(context)
        self._keep_running(self._controller.run())

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        self._cleanup.push_async_callback(stop_task, asyncio.ensure_future(work))

    async def address(self) -> str:
        """Returns host:port of the router's links, for gateways and replicas."""
        return self._server.address

    async def __del__(self) -> None:
        await self._cleanup.aclose()
