"""The router's process, as its Serve deployment sets it up, without Ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neox_serve.router.server import RouterServer
from neox_serve.settings import Settings
from tests.bench.ladder.hosts import hosting


@asynccontextmanager
async def router(settings: Settings, _folder: Path) -> AsyncIterator[str]:
    """The router and the metrics page."""
    server = RouterServer(settings=settings.router, metrics=settings.metrics)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


if __name__ == "__main__":
    hosting.run("router", router)
