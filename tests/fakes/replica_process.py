"""A replica around a fake engine in its own process, to be killed or frozen: python -m tests.fakes.replica_process ROUTER_ADDRESS"""

import asyncio
import sys

from neox_serve.core.types import Pool
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.replica.server import ReplicaServer
from tests.fakes.link_cluster import MODEL


async def main(router_address: str) -> None:
    """Serves until it is killed."""

    async def resolve() -> str:
        return router_address

    server = ReplicaServer(
        engine=FakeEngine(FakeTiming(ttft_s=0.01, itl_s=0.01)),
        pool=Pool.GENERATION,
        model=MODEL,
        host="127.0.0.1",
        max_requests=64,
        resolve_router=resolve,
        load_interval_s=0.1,
    )
    await server.start()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
