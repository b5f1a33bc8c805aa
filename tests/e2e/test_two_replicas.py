"""Two real replicas: tenants share them equally, and where one is killed in the midst of a stream the client gets the whole answer."""

import asyncio
import random
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from neox_serve.client import AsyncClient, StreamChunk, StreamFinal
from neox_serve.core.fair_counters import cost
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
    """Two generation replicas, each with few places."""
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
        while sum(pool.ready_replicas for pool in (await client.status()).pools) < 2:  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.2)


def serving_replica(cluster: CommandCluster, before: dict[int, float]) -> psutil.Process:
    """The replica whose engine core has used most of the processor since `before`."""
    cores = cluster.processes("VLLM::EngineCore")
    busiest = max(cores, key=lambda core: _used_s(core) - before.get(core.pid, 0.0))
    return next(parent for parent in busiest.parents() if "ServeReplica" in " ".join(parent.cmdline()))


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def test_backlogged_tenants_share_real_engines_equally_though_one_sends_longer_requests(pair: CommandCluster) -> None:
    async with AsyncClient(pair.address) as admin:
        await both_ready(admin)
        keys = {}
        for name in ("long", "short"):
            await admin.admin(pb.CreateTenantRequest(tenant=pb.Tenant(name=name)))
            keys[name] = (await admin.admin(pb.CreateKeyRequest(tenant=name))).secret
    async with AsyncClient(pair.address, api_key=keys["long"]) as long, AsyncClient(pair.address, api_key=keys["short"]) as short:
        served: dict[str, list[tuple[float, float]]] = {"long": [], "short": []}

        async def ask(name: str, client: AsyncClient, tokens: int) -> None:
            result = await client.generate(PROMPT, max_tokens=tokens, ignore_eos=True, timeout_s=120)
            usage = result.usage
            work = cost(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
            served[name].append((asyncio.get_running_loop().time(), work))

        calls = [ask("long", long, 96) for _ in range(120)] + [ask("short", short, 24) for _ in range(480)]
        await asyncio.gather(*calls)
    end_s = min(times[-1][0] for times in served.values())
    begin_s = min(times[0][0] for times in served.values()) + 0.2 * (end_s - min(times[0][0] for times in served.values()))
    shares = [sum(work for at_s, work in times if begin_s <= at_s <= end_s) for times in served.values()]
    assert jain(shares) >= 0.98, shares


async def test_stream_whose_replica_is_killed_at_a_random_token_is_token_for_token_the_undisturbed_one(pair: CommandCluster) -> None:
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
            while _gaps(pair) < TRIALS:  # noqa: ASYNC110 - the page is made anew every two seconds
                await asyncio.sleep(0.5)
    assert _gaps(pair) == TRIALS, "each trial disturbs its stream"


def _gaps(cluster: CommandCluster) -> float:
    """Streams that another replica went on with, as the cluster's scrape page counts them."""
    assert cluster.running.metrics_url is not None
    with urllib.request.urlopen(cluster.running.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("neox_gateway_continuation_gap_seconds_count"))


def _tokens(got: list[StreamChunk | StreamFinal]) -> list[int]:
    return [token_id for event in got if isinstance(event, StreamChunk) for token_id in event.token_ids]


def _text(got: list[StreamChunk | StreamFinal]) -> str:
    return "".join(event.text for event in got if isinstance(event, StreamChunk))
