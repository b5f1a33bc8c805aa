"""A pool of real engines scales from one replica to two under load and back, and every response is complete."""

import asyncio
from collections.abc import Iterator

import pytest

from neox_serve.client import AsyncClient
from neox_serve.client.results import PoolStatus
from neox_serve.core.types import Pool
from tests.clusters import CommandCluster, free_port, running_cluster
from tests.e2e.conftest import small_engine
from tests.streams import NO_RETRY, assert_whole, load, until

pytestmark = pytest.mark.e2e
TOKENS = 100
REQUESTS_PER_S = 3.0
START_S = 120.0
SHRINK_S = 180.0


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandCluster]:
    """A cluster with one generation replica that may become two.

    The configured step times are several times the small model's, so the policy asks for a second replica at a load that one can carry.
    """
    values = {
        "generation": {"engine": small_engine(), "replicas": {"min": 1, "initial": 1, "max": 2, "max_requests": 8}},
        "embedding": {"enabled": False},
        "scaling": {
            "assumed_startup_s": 15,
            "demand_history_s": 20,
            "demand_window_s": 10,
            "scale_down_hold_startups": 1,
            "scale_down_hold_s": 0,
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
    with running_cluster(tmp_path_factory.mktemp("growing"), values) as started:
        yield started


async def generation(client: AsyncClient) -> PoolStatus:
    return next(pool for pool in (await client.status(timeout_s=10)).pools if pool.pool is Pool.GENERATION)


async def test_pool_under_load_grows_and_shrinks_afterwards(growing: CommandCluster) -> None:
    async with AsyncClient(growing.address, retry=NO_RETRY) as client:

        async def grown() -> bool:
            return (await generation(client)).ready_replicas == 2

        async def shrunk() -> bool:
            return (await generation(client)).ready_replicas == 1 and len(growing.processes("VLLM::EngineCore")) == 1

        assert (await generation(client)).wanted_replicas == 1
        stop = asyncio.Event()
        heavy = asyncio.create_task(load(client, REQUESTS_PER_S, TOKENS, stop))
        await until(grown, START_S, "two replicas", every_s=0.5)
        assert "needs 2" in (await generation(client)).scaling_reason
        await asyncio.sleep(3)
        stop.set()
        records = await heavy
        assert_whole(records, TOKENS)
        assert len(growing.processes("VLLM::EngineCore")) == 2

        stop = asyncio.Event()
        light = asyncio.create_task(load(client, 0.3, TOKENS, stop))
        await until(shrunk, SHRINK_S, "one replica", every_s=0.5)
        stop.set()
        assert_whole(await light, TOKENS)
