"""The second rung: the gateway with the fake engine in its process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neox_serve.core.types import Pool
from neox_serve.engine.factory import start_engine
from neox_serve.settings import Settings
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.ladder.engine_dispatcher import EngineDispatcher
from tests.bench.ladder.hosts import hosting
from tests.bench.ladder.hosts.gateway import gateway_server


@asynccontextmanager
async def engine_gateway(settings: Settings, _folder: Path) -> AsyncIterator[str]:
    """Runs the engine and the gateway, and yields the gateway's address."""
    engine = await start_engine(PoolEngineSettings.from_settings(settings, Pool.GENERATION))
    server = gateway_server(settings, EngineDispatcher(engine))
    await server.start()
    try:
        yield f"{settings.gateway.host}:{server.port}"
    finally:
        await server.stop()
        await engine.close()


if __name__ == "__main__":
    hosting.run("engine_gateway", engine_gateway)
