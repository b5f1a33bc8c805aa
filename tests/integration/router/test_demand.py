"""What scaling is based on: backlog and load as replicas report them, and timings as gateways report them when requests end."""

import asyncio

import pytest

from neox_serve.core.cluster import Terms
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import EmbeddingRequest, Pool, Pooling
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from tests.fakes.link_cluster import MODEL, LinkCluster, generation, read_all, until

SLOW = FakeTiming(ttft_s=0.3, itl_s=0.02)


async def test_timings_of_responses_reach_the_router_once() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        await cluster.replica(FakeEngine(SLOW))
        await cluster.replica(FakeEngine(SLOW), Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher(replicas=2)
        router.demand()
        await asyncio.gather(
            read_all(await dispatcher.open_generation(MODEL, generation(11))),
            read_all(await dispatcher.open_generation(MODEL, generation(1))),
            read_all(await dispatcher.open_generation(MODEL, generation(11), Terms(priority=PriorityClass.BULK))),
        )
        given_up = await dispatcher.open_generation(MODEL, generation(100))
        await given_up.next()
        given_up.cancel()
        await dispatcher.embed(MODEL, EmbeddingRequest("e", (1, 2), Pooling.MEAN))
        await until(lambda: router.state.lease_count() == 0)
        seen = router.demand()
        one, many = sorted(seen[Pool.GENERATION].timings, key=lambda timings: timings.per_token_s is not None)
        assert one.per_token_s is None
        assert many.per_token_s == pytest.approx(0.02, rel=0.5)
        assert 0.3 <= min(one.first_token_s, many.first_token_s) <= max(one.first_token_s, many.first_token_s) < 1
        assert len(seen[Pool.EMBEDDING].timings) == 1
        assert not router.demand()[Pool.GENERATION].timings


async def test_requests_are_counted_once_on_arrival_whatever_their_outcome() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        engines = [FakeEngine(SLOW) for _ in range(2)]
        for engine in engines:
            await cluster.replica(engine)
        await cluster.replica(FakeEngine(SLOW), Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher(replicas=3)
        router.demand()
        streams = [await dispatcher.open_generation(MODEL, generation(20)) for _ in range(4)]
        engines[0].die()  # its requests come again
        await asyncio.gather(*map(read_all, streams))
        await dispatcher.embed(MODEL, EmbeddingRequest("e", (1, 2), Pooling.MEAN))
        seen = router.demand()
        arrived = seen[Pool.GENERATION].by_class[PriorityClass.DEFAULT]
        assert (arrived.requests, arrived.input_tokens, arrived.output_tokens) == (4, 12, 80)
        assert seen[Pool.EMBEDDING].by_class[PriorityClass.DEFAULT].requests == 1


async def test_prompts_without_output_are_the_prefill_backlog_of_their_replicas() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        await cluster.replica(FakeEngine(SLOW))
        dispatcher = await cluster.dispatcher()
        streams = [await dispatcher.open_generation(MODEL, generation(5, prompt_tokens=length)) for length in (7, 30)]
        await until(lambda: router.demand()[Pool.GENERATION].prefill_backlog_tokens == 37)
        await asyncio.gather(*map(read_all, streams))
        await until(lambda: router.demand()[Pool.GENERATION].prefill_backlog_tokens == 0)
