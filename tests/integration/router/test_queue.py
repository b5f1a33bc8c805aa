"""The fair queue over the real link: tenants, classes, deadlines, preemption, and a router that dies in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from neox_serve.core.cluster import Terms
from neox_serve.core.errors import Reason
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.router.server import RouterServer
from tests.fakes.link_cluster import MODEL, LinkCluster, failure_of, generation, read_all, until

QUICK = FakeTiming(ttft_s=0.001, itl_s=0.002)
SLOW_START = FakeTiming(ttft_s=0.5, itl_s=0.002)


@asynccontextmanager
async def cluster_of(
    places: int, timing: FakeTiming = QUICK, **router: Any
) -> AsyncIterator[tuple[LinkCluster, RouterServer, LinkDispatcher, FakeEngine]]:
    engine = FakeEngine(timing)
    async with LinkCluster() as cluster:
        started = await cluster.router(**router)
        await cluster.replica(engine, max_requests=places)
        yield cluster, started, await cluster.dispatcher(), engine
    await engine.close()


async def run(dispatcher: LinkDispatcher, terms: Terms, order: list[str], tokens: int = 20) -> None:
    stream = await dispatcher.open_generation(MODEL, generation(tokens), terms)
    order.append(terms.tenant)
    await read_all(stream)


async def test_tenants_take_turns_although_one_floods_the_queue() -> None:
    async with cluster_of(2) as (_, router, dispatcher, _):
        order: list[str] = []
        tokens = [200, 200, *[20] * 38]  # the first two still run when all others are queued
        flood = [asyncio.create_task(run(dispatcher, Terms("flood"), order, each)) for each in tokens]
        await until(lambda: len(router.queue) == 38)
        few = [asyncio.create_task(run(dispatcher, Terms("few"), order)) for _ in range(5)]
        await asyncio.gather(*few)
        assert order.count("flood") <= 14
        await asyncio.gather(*flood)
        await until(lambda: router.state.lease_count() == 0)


async def test_interactive_request_overtakes_earlier_bulk_requests() -> None:
    async with cluster_of(1) as (_, router, dispatcher, _):
        order: list[str] = []
        tasks = [asyncio.create_task(run(dispatcher, Terms("bulk", priority=PriorityClass.BULK), order)) for _ in range(10)]
        await until(lambda: len(router.queue) == 9)
        tasks.append(asyncio.create_task(run(dispatcher, Terms("user", priority=PriorityClass.INTERACTIVE), order)))
        await asyncio.gather(*tasks)
        assert order.index("user") <= 2


async def test_bulk_request_without_output_is_preempted_and_served_afterwards() -> None:
    async with cluster_of(1, SLOW_START) as (_, router, dispatcher, engine):
        order: list[str] = []
        bulk = asyncio.create_task(run(dispatcher, Terms("bulk", priority=PriorityClass.BULK), order))
        await until(lambda: engine.stats().running_requests + engine.stats().waiting_requests == 1)
        user = asyncio.create_task(run(dispatcher, Terms("user", priority=PriorityClass.INTERACTIVE), order))
        done, _ = await asyncio.wait({bulk, user}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {user}
        await bulk
        await until(lambda: router.state.lease_count() == 0)


async def test_bulk_request_with_output_is_not_preempted() -> None:
    async with cluster_of(1) as (_, _, dispatcher, engine):
        stream = await dispatcher.open_generation(MODEL, generation(100), Terms("bulk", priority=PriorityClass.BULK))
        first = await stream.next()
        user = asyncio.create_task(run(dispatcher, Terms("user", priority=PriorityClass.INTERACTIVE), []))
        rest = await read_all(stream)
        assert sum(len(sequence.token_ids) for delta in [*first, *rest] for sequence in delta.sequences) == 100
        await user
        assert engine.stats().running_requests == 0


async def test_request_queued_for_too_long_is_refused_with_a_retry_delay() -> None:
    async with cluster_of(1, max_queue_wait_s=0.3) as (_, _, dispatcher, _):
        blocker = await dispatcher.open_generation(MODEL, generation(100_000))
        error = await failure_of(dispatcher.open_generation(MODEL, generation(10)))
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after_s is not None
        blocker.cancel()


async def test_full_queue_refuses_the_newest_of_equals() -> None:
    async with cluster_of(1, max_queued_requests=2) as (_, router, dispatcher, _):
        blocker = await dispatcher.open_generation(MODEL, generation(100_000))
        waiting = [asyncio.create_task(run(dispatcher, Terms("a"), [])) for _ in range(2)]
        await until(lambda: len(router.queue) == 2)
        assert (await failure_of(dispatcher.open_generation(MODEL, generation(10), Terms("a")))).reason is Reason.OVERLOADED
        blocker.cancel()
        await asyncio.gather(*waiting)


async def test_cancelled_request_leaves_the_queue() -> None:
    async with cluster_of(1) as (_, router, dispatcher, _):
        blocker = await dispatcher.open_generation(MODEL, generation(100_000))
        waiting = asyncio.create_task(run(dispatcher, Terms("a"), []))
        await until(lambda: len(router.queue) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: len(router.queue) == 0)
        blocker.cancel()


async def test_queued_request_survives_its_router() -> None:
    async with cluster_of(1) as (cluster, router, dispatcher, _):
        blocker = await dispatcher.open_generation(MODEL, generation(100_000))
        order: list[str] = []
        waiting = [asyncio.create_task(run(dispatcher, Terms("a"), order)) for _ in range(5)]
        await until(lambda: len(router.queue) == 5)
        await router.stop()
        await asyncio.sleep(0.2)
        new = await cluster.router()
        await until(lambda: len(new.queue) == 5)
        assert order == []
        blocker.cancel()
        await asyncio.gather(*waiting)
        assert order == ["a"] * 5
        await until(lambda: new.state.lease_count() == 0)


async def test_estimate_returns_the_wait_and_the_use_of_quotas() -> None:
    from neox_serve.core.cluster import Demand
    from neox_serve.core.types import Pool

    async with cluster_of(1) as (_, router, dispatcher, _):
        demand = Demand(Pool.GENERATION, MODEL, 10, 10, terms=Terms("a"))
        wait_s, state = await dispatcher.estimate(demand, 2.0)
        assert (wait_s, state.minute_tokens) == (0.0, 0)
        blocker = await dispatcher.open_generation(MODEL, generation(100_000))
        assert (await dispatcher.estimate(demand, 2.0))[0] is None
        blocker.cancel()
        await until(lambda: router.state.lease_count() == 0)
