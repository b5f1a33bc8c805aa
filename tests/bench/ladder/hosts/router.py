"""The router's process, configured like the Serve deployment, without Ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neox_serve.router.server import RouterServer
from neox_serve.settings import Settings
from tests.bench.ladder.hosts import hosting


@asynccontextmanager
async def router(settings: Settings, _folder: Path) -> AsyncIterator[str]:
    """Runs the router and its metrics page, and yields the router's address."""
    server = RouterServer(settings=settings.router, metrics=settings.metrics)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


if __name__ == "__main__":
    hosting.run("router", router)
