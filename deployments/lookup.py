"""How gateways and replicas find the router: by asking Serve, each time they connect, because a restarted router has a new address."""

import asyncio
from collections.abc import Awaitable, Callable

from ray import serve

ROUTER_APPLICATION = "neox-router"
ROUTER_DEPLOYMENT = "router"

# Handle calls to a router that died are queued until the next one runs; the caller's reconnect loop asks again.
_LOOKUP_TIMEOUT_S = 2.0


def router_lookup() -> Callable[[], Awaitable[str]]:
    """Returns a coroutine function that gives the router's host:port. It raises TimeoutError or a Ray error where there is none."""

    async def resolve() -> str:
        handle = serve.get_deployment_handle(ROUTER_DEPLOYMENT, ROUTER_APPLICATION, _check_exists=False)
        return str(await asyncio.wait_for(_answer(handle), _LOOKUP_TIMEOUT_S))

    return resolve


async def _answer(handle: serve.handle.DeploymentHandle) -> object:
    return await handle.address.remote()
