"""An operator drains a replica: it finishes its requests, takes no new ones, and is then replaced."""

import asyncio

import pytest

from neox_serve.client import AsyncClient
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from tests.fakes.gateways import running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, failure_of, generation, read_all, until

TIMING = FakeTiming(ttft_s=0.001, itl_s=0.005)


async def test_drained_replica_finishes_its_streams_and_takes_no_new_ones() -> None:
    engines = [FakeEngine(TIMING), FakeEngine(TIMING)]
    async with LinkCluster() as cluster:
        await cluster.router()
        replicas = {replica.replica_id: replica for replica in [await cluster.replica(engine) for engine in engines]}
        dispatcher = await cluster.dispatcher(replicas=2)
        stream = await dispatcher.open_generation(MODEL, generation(100))
        leaving = replicas[stream.replica_id]
        async with running_gateway(dispatcher, model={"name": MODEL}) as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
            await client.drain_replica(leaving.replica_id)
            await until(lambda: dispatcher.ready_replicas(Pool.GENERATION) == 1)
            others = [await dispatcher.open_generation(MODEL, generation(3)) for _ in range(6)]
            assert leaving.replica_id not in {other.replica_id for other in others}
            await asyncio.gather(*map(read_all, others))
            assert not leaving.left
            assert len([one for delta in await read_all(stream) for one in delta.sequences]) == 100
            await until(lambda: leaving.left)
            with pytest.raises(ServeError) as caught:
                await client.drain_replica("none")
            assert caught.value.violations[0].field == "replica_id"
    for engine in engines:
        await engine.close()


async def test_replica_cannot_be_drained_without_a_router() -> None:
    engine = FakeEngine(TIMING)
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        await router.stop()
        await until(lambda: not dispatcher.router_connected)
        async with running_gateway(dispatcher, model={"name": MODEL}) as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
            error = await failure_of(client.drain_replica(replica.replica_id, timeout_s=2))
            assert error.reason in {Reason.NO_READY_REPLICA, Reason.DEADLINE_EXCEEDED}
    await engine.close()
