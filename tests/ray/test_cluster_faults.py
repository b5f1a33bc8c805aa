"""Failures that a cluster survives: real processes are killed under real streams of fake engines, whose timing is known."""

import asyncio

import pytest

from neox_serve.client import AsyncClient
from neox_serve.client.retry import UNREACHABLE
from neox_serve.core.errors import Reason
from neox_serve.core.types import Pool
from tests.clusters import GATEWAY, GENERATION, ROUTER, CommandCluster
from tests.ray.conftest import fake_engine
from tests.streams import NO_RETRY, StreamRecord, assert_whole, read_stream, until

pytestmark = pytest.mark.ray

LONG = 250
"""Tokens of a stream that takes 5 s, at 20 ms per token."""
LONGER_THAN_ANY_WAIT = 1900
"""Tokens of a stream that takes 38 s."""
TWO_REPLICAS = {"min": 2, "initial": 2, "max": 2}


async def start_streams(
    client: AsyncClient, count: int, max_tokens: int = LONG
) -> tuple[list[StreamRecord], "asyncio.Future[list[StreamRecord]]"]:
    """Starts streams and waits until each has received a token."""
    records = [StreamRecord() for _ in range(count)]
    reading = asyncio.gather(
        *(read_stream(client, f"stream {n}", max_tokens=max_tokens, record=record) for n, record in enumerate(records))
    )

    async def all_started() -> bool:
        return all(record.token_ids for record in records)

    await until(all_started, 20, "every stream has a token")
    return records, reading


async def generation_ready(client: AsyncClient, replicas: int) -> bool:
    """Returns whether the router runs and this many generation replicas are ready."""
    status = await client.status(timeout_s=5)
    ready = {pool.pool: pool.ready_replicas for pool in status.pools}
    return ready.get(Pool.GENERATION) == replicas and not any(condition.reason == "ROUTER_DOWN" for condition in status.conditions)


async def idle(client: AsyncClient) -> bool:
    """Returns whether no request is in progress."""
    status = await client.status(timeout_s=5)
    return all(replica.running_requests + replica.waiting_requests + replica.outstanding_tokens == 0 for replica in status.replicas)


async def replicas_at_work(client: AsyncClient) -> int:
    """Returns the number of generation replicas that have requests."""
    replicas = (await client.status(timeout_s=5)).replicas
    return sum(replica.pool is Pool.GENERATION and replica.outstanding_tokens > 0 for replica in replicas)


async def test_killed_router_running_streams_continue_and_new_requests_are_served(cluster: CommandCluster) -> None:
    async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
        _, reading = await start_streams(client, 4)
        (router,) = cluster.processes(ROUTER)
        router.kill()
        new = await read_stream(client, "while the router is down", max_tokens=5)
        assert_whole([new], 5)
        assert_whole(await reading, LONG)
        await until(lambda: generation_ready(client, 1), 30, "the router is back and knows the replica")
        await until(lambda: idle(client), 10, "the new router holds no lease")


async def test_killed_gateway_its_requests_are_aborted_and_the_other_gateway_serves(cluster: CommandCluster) -> None:
    async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
        gateway_id = (await client.status(timeout_s=5)).gateway_id
        records, reading = await start_streams(client, 4, max_tokens=LONGER_THAN_ANY_WAIT)
        (victim,) = [process for process in cluster.processes(GATEWAY) if f"-{process.pid}-" in gateway_id]
        victim.kill()
        await reading
        assert all(record.error and UNREACHABLE in record.error.metadata for record in records)
    await asyncio.to_thread(victim.wait, 10)  # until the process has ended, its port still accepts connections
    async with AsyncClient(cluster.address) as other:
        assert_whole([await read_stream(other, "after", max_tokens=5)], 5)
        await until(lambda: idle(other), 10, "the dead gateway's requests are aborted and its leases gone")

        async def both_gateways() -> bool:
            return len((await other.status(timeout_s=5)).gateways) == 2

        await until(both_gateways, 30, "Serve has restarted the gateway")


async def test_killed_replica_streams_end_with_a_retry_delay_and_the_service_recovers(cluster: CommandCluster) -> None:
    async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
        records, reading = await start_streams(client, 4)
        (engine,) = cluster.processes(GENERATION)
        engine.kill()
        await reading
        assert {record.error.reason for record in records if record.error} == {Reason.REPLICA_LOST}
        assert all(record.error and record.error.retry_after_s for record in records)
        await until(lambda: generation_ready(client, 1), 60, "Serve has restarted the engine")
        assert_whole([await read_stream(client, "after", max_tokens=5)], 5)


async def test_killed_replica_requests_without_output_move_to_another_replica(cluster: CommandCluster) -> None:
    slow = {"generation": {"engine": fake_engine(ttft_s=3.0), "replicas": TWO_REPLICAS}}
    await asyncio.to_thread(cluster.roll, cluster.values | slow)
    try:
        async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
            await until(lambda: generation_ready(client, 2), 60, "two replicas")
            streams = [asyncio.create_task(read_stream(client, f"moved {n}", max_tokens=5)) for n in range(8)]

            async def both_have_requests() -> bool:
                return await replicas_at_work(client) == 2

            await until(both_have_requests, 2, "both replicas have requests")
            cluster.processes(GENERATION)[0].kill()
            assert_whole(await asyncio.gather(*streams), 5)
    finally:
        await asyncio.to_thread(cluster.roll, cluster.values)


async def test_scaling_up_and_down_under_load_loses_no_request(cluster: CommandCluster) -> None:
    async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
        await until(lambda: generation_ready(client, 1), 30, "one replica")
        _, reading = await start_streams(client, 10, max_tokens=700)
        await until(lambda: generation_ready(client, 2), 60, "the policy has scaled to two")
        late = await asyncio.gather(*(read_stream(client, f"late {n}", max_tokens=100) for n in range(10)))
        assert_whole(late, 100)
        assert_whole(await reading, 700)
        _, lasting = await start_streams(client, 5, max_tokens=900)
        assert await replicas_at_work(client) == 2, "the replica that goes has streams"
        await until(lambda: generation_ready(client, 1), 60, "the policy has scaled back to one")
        assert_whole(await lasting, 900)


async def test_rolling_an_engine_setting_restarts_neither_gateways_nor_router_and_fails_no_request(cluster: CommandCluster) -> None:
    values = cluster.values | {"generation": {"engine": fake_engine(), "replicas": TWO_REPLICAS}}
    await asyncio.to_thread(cluster.roll, values)
    try:
        async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
            await until(lambda: generation_ready(client, 2), 60, "two replicas")
            gateways = {process.pid for process in cluster.processes(GATEWAY)}
            router = {process.pid for process in cluster.processes(ROUTER)}
            engines = {process.pid for process in cluster.processes(GENERATION)}
            rolled = asyncio.Event()

            async def keep_streaming(n: int) -> list[StreamRecord]:
                records = []
                while not rolled.is_set():
                    records.append(await read_stream(client, f"client {n}", max_tokens=100))
                return records

            clients = [asyncio.create_task(keep_streaming(n)) for n in range(8)]
            changed = {"generation": {"engine": {**fake_engine(), "max_num_seqs": 64}, "replicas": TWO_REPLICAS}}
            await asyncio.to_thread(cluster.roll, cluster.values | changed)
            await asyncio.sleep(2)
            rolled.set()
            records = [record for task in clients for record in await task]
            assert_whole(records, 100)
            assert {process.pid for process in cluster.processes(GATEWAY)} == gateways
            assert {process.pid for process in cluster.processes(ROUTER)} == router
            assert not engines & {process.pid for process in cluster.processes(GENERATION)}
    finally:
        await asyncio.to_thread(cluster.roll, cluster.values)
