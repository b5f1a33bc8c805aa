"""Scaling of a real cluster of fake engines: from zero replicas to four under load, and back to zero."""

import asyncio
from collections.abc import Iterator

import pytest

from neox_serve.client import AsyncClient
from neox_serve.core.types import Pool
from tests.clusters import ROUTER, CommandCluster, free_port, running_cluster
from tests.ray.conftest import fake_engine
from tests.streams import NO_RETRY, assert_whole, load, read_stream, until

pytestmark = pytest.mark.ray

CONTROLLER = "ServeController"
TOKENS, LASTING_TOKENS = 100, 1000


@pytest.fixture(scope="module")
def sleeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandCluster]:
    """A cluster whose pools start with zero replicas.

    The configured step times are several times those of the fake engine, so that a load that one replica could bear scales the pool up.
    """
    values = {
        "generation": {"engine": fake_engine(), "replicas": {"min": 0, "initial": 0, "max": 4, "max_requests": 64}},
        "embedding": {"engine": fake_engine(), "replicas": {"min": 0, "initial": 0, "max": 1}},
        "scaling": {
            "assumed_startup_s": 8,
            "demand_history_s": 10,
            "demand_window_s": 5,
            "scale_down_hold_startups": 1,
            "scale_down_hold_s": 0,
            "scale_to_zero_after_s": 1,
            "interval_s": 0.3,
            "step_base_s": 0.01,
            "step_per_sequence_s": 0.004,
            "step_per_resident_token_s": 1e-7,
            "step_per_prompt_token_s": 1e-5,
            "kv_cache_tokens": 8192,
        },
        "gateway": {"port": free_port(), "processes": 1},
        "metrics": {"port": free_port()},
        "ray": {"dashboard_port": free_port()},
    }
    with running_cluster(tmp_path_factory.mktemp("sleeping"), values) as started:
        yield started


async def generation(client: AsyncClient) -> tuple[int, int | None, str]:
    """Returns the number of ready replicas, the number of wanted replicas, and the reason for the latter."""
    status = await client.status(timeout_s=5)
    pool = next(one for one in status.pools if one.pool is Pool.GENERATION)
    return pool.ready_replicas, pool.wanted_replicas, pool.scaling_reason


async def wait_for_size(client: AsyncClient, ready: int, timeout_s: float) -> None:
    async def reached() -> bool:
        return (await generation(client))[:2] == (ready, ready)

    await until(reached, timeout_s, f"{ready} replicas, ready and wanted")


async def test_pool_scales_from_zero_to_four_and_back_without_losing_requests(sleeping: CommandCluster) -> None:
    async with AsyncClient(sleeping.address, retry=NO_RETRY) as client:
        await wait_for_size(client, 0, 30)
        first = await asyncio.gather(*(read_stream(client, f"first {n}", max_tokens=5) for n in range(3)))
        assert_whole(first, 5)
        vector = await client.embed("held until a replica comes", timeout_s=60.0)
        assert len(vector.vectors) == 1
        await wait_for_size(client, 1, 30)

        stop = asyncio.Event()
        heavy = asyncio.create_task(load(client, 8, TOKENS, stop))

        async def wanted_four() -> bool:
            return (await generation(client))[1] == 4

        await until(wanted_four, 30, "four replicas are wanted")
        # First the router and then Serve's controller die while the pool is scaled up.
        sleeping.processes(ROUTER)[0].kill()
        await asyncio.sleep(1)
        sleeping.processes(CONTROLLER)[0].kill()
        await wait_for_size(client, 4, 90)
        lasting = [asyncio.create_task(read_stream(client, f"lasting {n}", max_tokens=LASTING_TOKENS)) for n in range(8)]
        stop.set()
        assert_whole(await heavy, TOKENS)

        stop = asyncio.Event()
        light = asyncio.create_task(load(client, 0.5, TOKENS, stop))
        await wait_for_size(client, 1, 90)
        assert_whole(await asyncio.gather(*lasting), LASTING_TOKENS)
        stop.set()
        assert_whole(await light, TOKENS)
        await wait_for_size(client, 0, 60)
