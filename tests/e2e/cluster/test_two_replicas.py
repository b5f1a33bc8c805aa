"""Two real replicas: tenants share them equally, and if one is killed during a stream, the client still gets the complete response."""

import asyncio
import random
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from sqlalchemy import select

from neox_serve.client import AsyncClient, StreamChunk, StreamFinal
from neox_serve.core.scheduling.fair_counters import cost
from neox_serve.settings import database_url
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.tables import usage_records
from neox_serve.v1 import admin_service_pb2 as pb
from tests.clusters import CommandCluster, free_port, running_cluster
from tests.e2e.conftest import small_engine
from tests.simulation.sharing import jain

pytestmark = pytest.mark.e2e
PROMPT = "import os\nimport sys\n\n\ndef main("
TOKENS = 160
TRIALS = 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandCluster]:
    """A cluster with two generation replicas that each run few requests at a time."""
    replicas = {"initial": 2, "min": 2, "max": 2, "max_requests": 4}
    values = {
        "generation": {"engine": small_engine(), "replicas": replicas},
        "embedding": {"enabled": False},
        "gateway": {"port": free_port(), "processes": 1},
        "metrics": {"port": free_port()},
        "ray": {"dashboard_port": free_port()},
    }
    with running_cluster(tmp_path_factory.mktemp("pair"), values) as started:
        yield started


async def events(client: AsyncClient) -> AsyncIterator[StreamChunk | StreamFinal]:
    async for event in client.stream(PROMPT, max_tokens=TOKENS, temperature=0.0, ignore_eos=True, timeout_s=120):
        yield event


async def both_ready(client: AsyncClient) -> None:
    async with asyncio.timeout(120):
        while sum(pool.ready_replicas for pool in (await client.status()).pools) < 2:  # noqa: ASYNC110 - status is a call
            await asyncio.sleep(0.2)


def serving_replica(cluster: CommandCluster, before: dict[int, float]) -> psutil.Process:
    """The replica whose engine core has used the most CPU time since `before`."""
    cores = cluster.processes("VLLM::EngineCore")
    busiest = max(cores, key=lambda core: _used_s(core) - before.get(core.pid, 0.0))
    return next(parent for parent in busiest.parents() if "ServeReplica" in " ".join(parent.cmdline()))


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def test_backlogged_tenants_with_requests_of_different_length_share_engines_equally(pair: CommandCluster) -> None:
    async with AsyncClient(pair.address) as admin:
        await both_ready(admin)
        keys = {}
        for name in ("long", "short"):
            await admin.admin(pb.CreateTenantRequest(tenant=pb.Tenant(name=name)))
            keys[name] = (await admin.admin(pb.CreateKeyRequest(tenant=name))).secret
    # An overloaded machine may lose a link to a replica for a moment, and with it more work of one tenant than of the other.
    runs = [await shares(pair, keys)]
    if jain(runs[0]) < 0.98:
        runs.append(await shares(pair, keys))
    assert max(map(jain, runs)) >= 0.98, runs


async def shares(cluster: CommandCluster, keys: dict[str, str]) -> list[float]:
    """The service that each of two tenants received while both had requests waiting."""
    since_us = time.time_ns() // 1_000
    async with AsyncClient(cluster.address, api_key=keys["long"]) as long, AsyncClient(cluster.address, api_key=keys["short"]) as short:
        long_ones = [long.generate(PROMPT, max_tokens=96, ignore_eos=True, timeout_s=120) for _ in range(120)]
        short_ones = [short.generate(PROMPT, max_tokens=24, ignore_eos=True, timeout_s=120) for _ in range(480)]
        await asyncio.gather(*long_ones, *short_ones)
    served = await recorded_work(cluster, since_us, 600)
    begin_s = min(work[0][0] for work in served.values())
    end_s = min(work[-1][0] for work in served.values())
    begin_s += 0.2 * (end_s - begin_s)
    return [sum(amount for at_s, amount in work if begin_s <= at_s <= end_s) for work in served.values()]


async def recorded_work(cluster: CommandCluster, since_us: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """For each tenant the end and the fair-share cost of its requests, from the usage records, in order of time."""
    database = open_database(database_url(cluster.settings))
    columns = usage_records.c
    query = select(columns.tenant, columns.at_us, columns.prompt_tokens, columns.cached_tokens, columns.completion_tokens)
    async with asyncio.timeout(20):
        while True:
            with database.connect() as connection:
                rows = connection.execute(
                    query.where(columns.tenant.in_(["long", "short"]), columns.at_us >= since_us).order_by(columns.at_us)
                ).all()
            if len(rows) >= requests:
                break
            await asyncio.sleep(0.2)
    database.dispose()
    work: dict[str, list[tuple[float, float]]] = {}
    for tenant, at_us, prompt_tokens, cached_tokens, completion_tokens in rows:
        work.setdefault(tenant, []).append((at_us / 1e6, cost(prompt_tokens, cached_tokens, completion_tokens)))
    return work


async def test_prompts_with_a_common_prefix_use_the_prefix_cache(pair: CommandCluster) -> None:
    """The engines report the hits. With random routing each prefix would be computed on both replicas."""
    rng, groups, repeats, shared_tokens = random.Random(3), 8, 6, 256
    prefixes = [[rng.randrange(100, 4000) for _ in range(shared_tokens)] for _ in range(groups)]
    cached = 0
    async with AsyncClient(pair.address) as client:
        await both_ready(client)
        for _ in range(repeats):
            for prefix in rng.sample(prefixes, groups):
                prompt = [*prefix, *(rng.randrange(100, 4000) for _ in range(16))]
                cached += (await client.generate(prompt, max_tokens=2, ignore_eos=True)).usage.cached_tokens
    assert cached >= 0.95 * groups * (repeats - 1) * shared_tokens


async def test_stream_replica_killed_at_a_random_token_equals_the_undisturbed_stream(pair: CommandCluster) -> None:
    rng = random.Random(7)
    async with AsyncClient(pair.address) as client:
        await both_ready(client)
        wanted = [event async for event in events(client)]
        for _ in range(TRIALS):
            await both_ready(client)
            before = {core.pid: _used_s(core) for core in pair.processes("VLLM::EngineCore")}
            kill_after = rng.randint(10, TOKENS // 2)
            got: list[StreamChunk | StreamFinal] = []
            async for event in events(client):
                got.append(event)
                if len(got) == kill_after:
                    serving_replica(pair, before).send_signal(signal.SIGKILL)
            assert _tokens(got) == _tokens(wanted)
            final, undisturbed = got[-1], wanted[-1]
            assert isinstance(final, StreamFinal)
            assert isinstance(undisturbed, StreamFinal)
            assert final.usage.completion_tokens == undisturbed.usage.completion_tokens == TOKENS
            assert final.usage.prompt_tokens == undisturbed.usage.prompt_tokens
            assert _text(got) == _text(wanted)
        async with asyncio.timeout(20):
            while _gaps(pair) < TRIALS:  # noqa: ASYNC110 - the page is refreshed every two seconds
                await asyncio.sleep(0.5)
    assert _gaps(pair) == TRIALS, "every trial must interrupt its stream"


def _gaps(cluster: CommandCluster) -> float:
    """Number of streams that continued on another replica, from the cluster's metrics page."""
    assert cluster.running.metrics_url is not None
    with urllib.request.urlopen(cluster.running.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("neox_serve_gateway_continuation_gap_seconds_count"))


def _tokens(got: list[StreamChunk | StreamFinal]) -> list[int]:
    return [token_id for event in got if isinstance(event, StreamChunk) for token_id in event.token_ids]


def _text(got: list[StreamChunk | StreamFinal]) -> str:
    return "".join(event.text for event in got if isinstance(event, StreamChunk))
