"""An engine replica's process, configured like the Serve deployment, without Ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neox_serve.core.types import Pool
from neox_serve.engine.factory import start_engine
from neox_serve.replica.server import ReplicaServer
from neox_serve.settings import Settings
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.ladder.hosts import hosting


@asynccontextmanager
async def replica(settings: Settings, folder: Path) -> AsyncIterator[str]:
    """Runs the engine and its links, and yields the replica's address."""
    engine = await start_engine(PoolEngineSettings.from_settings(settings, Pool.GENERATION))
    server = ReplicaServer(
        engine=engine,
        pool=Pool.GENERATION,
        model=settings.model.name,
        host=settings.router.host,
        max_requests=settings.generation.replicas.max_requests,
        resolve_router=hosting.router_lookup(folder),
        load_interval_s=settings.router.load_report_interval_s,
    )
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()
        await engine.close()


if __name__ == "__main__":
    hosting.run("replica", replica)
