"""Simulated replicas in a separate process: `python -m tests.bench.router.replicas <router's host:port> <count>` runs until SIGTERM.

Each replica has its own connection to the router, registers, and reports its load every 0.25 s.
"""

import asyncio
import sys
from random import Random

import uvloop

from neox_serve.core.cluster import Replica, ReplicaLoad
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import internal_channel
from neox_serve.link.streams import read, write
from neox_serve.wire import replica_messages

MODEL = "model"
"""Name of the model that all replicas serve."""
_MAX_REQUESTS = 256
_LOAD_INTERVAL_S = 0.25


def replica(number: int) -> Replica:
    """Returns the replica with this number."""
    return Replica(f"replica-{number}", Pool.GENERATION, MODEL, f"host:{number}", _MAX_REQUESTS)


async def run(address: str, replicas: int) -> None:
    """Runs all replicas. Raises StreamEndedError if a stream to the router ends."""
    await asyncio.gather(*(_live(replica(number), address) for number in range(replicas)))


async def _live(replica: Replica, address: str) -> None:
    rng = Random(replica.replica_id)
    async with internal_channel(address) as channel:
        call = RouterLinkServiceStub(channel).ConnectReplica()
        await write(call, replica_messages.replica_hello(replica))
        await read(call, pb.ConnectReplicaResponse)
        await asyncio.sleep(rng.uniform(0, _LOAD_INTERVAL_S))
        while True:
            load = ReplicaLoad(_MAX_REQUESTS, 0, rng.random(), rng.uniform(500.0, 1500.0))
            await write(call, replica_messages.replica_load(load))
            await asyncio.sleep(_LOAD_INTERVAL_S)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2])))
