"""Routing by cached prefixes over the real links: cache updates, their loss, explanations, and separation of tenants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neox_serve.core.prefix_cache.salt import cache_salt
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.engine.fake.cache import FakeCache
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.replica.server import ReplicaServer
from neox_serve.router.server import RouterServer
from neox_serve.settings import restore
from neox_serve.tenancy.platform import Platform
from neox_serve.v1 import generation_pb2, inference_service_pb2
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, until
from tests.fakes.scripted_engine import ScriptedEngine

BLOCK_TOKENS = 16
IDS = tuple(range(10, 10 + 6 * BLOCK_TOKENS))
EXPLAIN = ("neox-explain", "1")
SHORT = generation_pb2.GenerationParameters(stopping=generation_pb2.Stopping(max_tokens=2))


@dataclass(frozen=True, slots=True)
class Parts:
    """A router, replicas with caches, and a gateway."""

    cluster: LinkCluster
    router: RouterServer
    server: GatewayServer
    stubs: Stubs
    replicas: tuple[ReplicaServer, ...]

    async def ask(self, *metadata: tuple[str, str], ids: tuple[int, ...] = IDS) -> tuple[int, str]:
        """Returns the cached tokens of a unary call and its route, which is empty if not reported."""
        prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids))
        request = inference_service_pb2.GenerateRequest(prompts=[prompt], parameters=SHORT)
        call = self.stubs.inference.Generate(request, metadata=metadata)
        response = await call
        trailing = {str(key): str(value) for key, value in await call.trailing_metadata() or ()}
        return response.usage.cached_tokens, trailing.get("neox-route", "")

    async def indexed(self, blocks: int) -> None:
        """Returns when the router knows this many blocks."""
        await until(lambda: self.router.state.block_count() == blocks)

    def prefix_tokens(self, kind: str) -> float:
        """Returns the gateway's metrics of predictions."""
        lines = [line for line in self.server.metrics_text().splitlines() if f'prefix_tokens_total{{kind="{kind}"}}' in line]
        return float(lines[0].split()[-1]) if lines else 0.0


@asynccontextmanager
async def parts(*, replicas: int = 3, policy: str = "kv-aware", platform: Platform | None = None) -> AsyncIterator[Parts]:
    async with LinkCluster() as cluster:
        router = await cluster.router(policy=policy)
        caches = [FakeCache(MODEL, block_tokens=BLOCK_TOKENS, capacity_blocks=100) for _ in range(replicas)]
        engines = [FakeEngine(FakeTiming(ttft_s=0.005, itl_s=0.002), cache=cache) for cache in caches]
        servers = tuple([await cluster.replica(engine) for engine in engines])
        dispatcher = await cluster.dispatcher(replicas=replicas)
        sections: dict[str, Any] = {"model": {"name": MODEL}, "access": {"allow_anonymous": platform is None}}
        async with running_gateway(dispatcher, platform=platform, **sections) as server, connected(server.port) as stubs:
            yield Parts(cluster, router, server, stubs, servers)
        for engine in engines:
            await engine.close()


async def test_equal_prompts_meet_the_replica_that_has_them_and_the_choice_is_explained() -> None:
    async with parts() as cluster:
        assert (await cluster.ask(EXPLAIN))[0] == 0
        await cluster.indexed(6)
        reported = {await cluster.ask(EXPLAIN) for _ in range(6)}
        ((cached, route),) = reported
        assert cached == 5 * BLOCK_TOKENS
        words = dict(word.split("=") for word in route.split())
        assert words["replica"] in {replica.replica_id for replica in cluster.replicas}
        assert (words["policy"], words["why"], words["cached_tokens"]) == ("kv-aware", "longest-prefix", str(cached))
        assert words["candidates"] == "3"


async def test_every_prompt_of_a_call_has_its_own_explanation() -> None:
    async with parts() as cluster:
        prompts = [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[first, 6, 7])) for first in (3, 4, 5)]
        call = cluster.stubs.inference.Generate(
            inference_service_pb2.GenerateRequest(prompts=prompts, parameters=SHORT), metadata=[EXPLAIN]
        )
        await call
        routes = [value for key, value in await call.trailing_metadata() or () if key == "neox-route"]
        assert len(routes) == 3


async def test_stream_is_explained_and_predicted_as_a_unary_call_is() -> None:
    async with parts() as cluster:
        await cluster.ask()
        await cluster.indexed(6)
        prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=IDS))
        request = inference_service_pb2.StreamGenerateRequest(prompt=prompt, parameters=SHORT)
        call = cluster.stubs.inference.StreamGenerate(request, metadata=[EXPLAIN])
        *_, last = [event async for event in call]
        trailing = {str(key): str(value) for key, value in await call.trailing_metadata() or ()}
        assert "why=longest-prefix" in trailing["neox-route"]
        assert last.final.usage.cached_tokens == cluster.prefix_tokens("predicted") == 5 * BLOCK_TOKENS


async def test_choice_is_not_explained_to_who_does_not_ask() -> None:
    async with parts() as cluster:
        assert (await cluster.ask())[1] == ""
        assert (await cluster.ask(("neox-explain", "0")))[1] == ""


async def test_predictions_are_counted_against_what_the_engine_found() -> None:
    async with parts() as cluster:
        await cluster.ask()
        await cluster.indexed(6)
        await cluster.ask()
        assert [cluster.prefix_tokens(kind) for kind in ("predicted", "missing", "unforeseen")] == [5 * BLOCK_TOKENS, 0, 0]


async def test_cache_that_lost_its_blocks_unheard_shows_as_missing_tokens() -> None:
    async with parts(replicas=1) as cluster:
        await cluster.ask()
        await cluster.indexed(6)
        reporter = cluster.replicas[0]._blocks
        ledger = reporter._ledger
        assert ledger is not None
        reporter.stop()
        ledger.clear()
        await cluster.ask()
        assert cluster.prefix_tokens("missing") == 5 * BLOCK_TOKENS


async def test_new_router_is_told_what_all_caches_hold() -> None:
    async with parts() as cluster:
        await cluster.ask()
        await cluster.indexed(6)
        await cluster.router.stop()
        again = await cluster.cluster.router()
        await until(lambda: again.state.block_count() == 6)


async def test_missed_news_are_found_out_and_made_good() -> None:
    async with LinkCluster() as cluster:
        router, engine = await cluster.router(), ScriptedEngine(block_tokens=BLOCK_TOKENS)
        replica = await cluster.replica(engine)
        assert engine.block_ledger is not None
        await until(lambda: replica.router_connected)
        engine.block_ledger.change(stored=[1, 2])
        await until(lambda: router.state.block_count() == 2)
        next(replica._blocks._numbers)
        engine.block_ledger.change(stored=[3])
        await until(lambda: router.state.block_count() == 3)


async def test_replica_that_is_gone_for_good_takes_its_blocks_with_it() -> None:
    async with LinkCluster() as cluster:
        router, engine = await cluster.router(grace_s=0.05), ScriptedEngine(block_tokens=BLOCK_TOKENS)
        replica = await cluster.replica(engine)
        assert engine.block_ledger is not None
        engine.block_ledger.change(stored=range(5000))
        await until(lambda: router.state.block_count() == 5000)
        await replica.stop()
        await until(lambda: router.state.block_count() == 0)


async def test_session_policy_keeps_a_session_on_one_replica() -> None:
    async with parts(policy="session") as cluster:
        routes: dict[str, set[str]] = {str(session): set() for session in range(32)}
        for name, seen in routes.items():
            for number in range(3):
                _, route = await cluster.ask(EXPLAIN, ("neox-session", name), ids=(5, 6, number))
                seen.add(route.split()[0])
                assert "why=session" in route
        assert all(len(seen) == 1 for seen in routes.values())
        assert len(set.union(*routes.values())) > 1


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    opened = await Platform.open(restore({"state_folder": str(tmp_path)}), "gateway-under-test")
    yield opened
    await opened.close()


async def key_of(platform: Platform, name: str) -> tuple[str, str]:
    """Creates a tenant and returns the metadata with its API key."""
    platform.tenants.add(Tenant(name), "test", ())
    made, _ = platform.tenants.add_key(name, "test")
    await platform.directory.refresh()
    return ("authorization", f"Bearer {made.text}")


async def test_tenants_share_no_cached_prompt_and_each_has_its_own(platform: Platform) -> None:
    acme, other = await key_of(platform, "acme"), await key_of(platform, "other")
    async with parts(replicas=1, platform=platform) as cluster:
        assert [(await cluster.ask(key))[0] for key in (acme, acme, other, other, acme)] == [0, 80, 0, 80, 80]


async def test_tenant_cannot_name_the_salt_of_another(platform: Platform) -> None:
    acme, other = await key_of(platform, "acme"), await key_of(platform, "other")
    stolen = cache_salt(platform.secret, "acme")
    async with parts(replicas=1, platform=platform) as cluster:
        await cluster.ask(acme)
        names = ("cache-salt", "cache_salt", "neox-cache-salt", "neox-tenant", "neox-session")
        assert (await cluster.ask(other, *((name, stolen) for name in names)))[0] == 0
