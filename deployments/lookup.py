"""Lets gateways and replicas find the router. They ask Serve whenever they connect, because a restarted router has a new address."""

import asyncio
from collections.abc import Awaitable, Callable

from ray import serve

ROUTER_APPLICATION = "neox-router"
ROUTER_DEPLOYMENT = "router"

_LOOKUP_TIMEOUT_S = 2.0
"""Serve queues calls to a dead router until the next one runs. The caller's reconnect loop asks again."""


def router_lookup() -> Callable[[], Awaitable[str]]:
    """Returns a coroutine function that gives the router's host:port. It raises TimeoutError or a Ray error if no router runs."""

    async def resolve() -> str:
        handle = serve.get_deployment_handle(ROUTER_DEPLOYMENT, ROUTER_APPLICATION, _check_exists=False)
        return str(await asyncio.wait_for(_ask(handle), _LOOKUP_TIMEOUT_S))

    return resolve


async def _ask(handle: serve.handle.DeploymentHandle) -> object:
    return await handle.address.remote()
