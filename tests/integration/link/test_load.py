"""Many requests at once: nothing leaks and nothing is lost."""

import asyncio
from random import Random

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import EmbeddingRequest, Pool, Pooling
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from tests.fakes.link_cluster import MODEL, LinkCluster, generation, read_all, until

TIMING = FakeTiming(ttft_s=0.001, itl_s=0.002)


async def open_and_leave(dispatcher: LinkDispatcher, rng: Random) -> str:
    """Opens a stream and leaves it at a random point in a random way, as clients do. Returns how it ended."""
    manner = rng.choice(["read", "cancel at once", "cancel after a token", "vanish while opening", "vanish while reading"])
    opening = asyncio.ensure_future(dispatcher.open_generation(MODEL, generation(rng.randint(1, 20))))
    if manner == "vanish while opening":
        await asyncio.sleep(rng.uniform(0, 0.003))
        opening.cancel()
        (result,) = await asyncio.gather(opening, return_exceptions=True)
        if not isinstance(result, BaseException):
            result.cancel()  # it was open already
        return manner
    stream = await opening
    if manner == "read":
        assert (await read_all(stream))[-1].end
    elif manner == "cancel after a token":
        await stream.next()
    elif manner == "vanish while reading":
        reading = asyncio.ensure_future(read_all(stream))
        await asyncio.sleep(rng.uniform(0, 0.02))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    stream.cancel()
    return manner


async def test_churn_of_64_clients_leaves_nothing_behind() -> None:
    engines = [FakeEngine(TIMING), FakeEngine(TIMING)]
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replicas = [await cluster.replica(engine) for engine in engines]
        dispatchers = [await cluster.dispatcher(name, replicas=2) for name in ("g", "h")]

        async def client(number: int) -> list[str]:
            rng = Random(number)
            return [await open_and_leave(dispatchers[number % 2], rng) for _ in range(15)]

        manners = await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(64))), 60)
        assert len({manner for each in manners for manner in each}) == 5
        await until(lambda: router.state.lease_count() == 0)
        assert [dispatcher.requests_in_flight for dispatcher in dispatchers] == [0, 0]
        await until(lambda: [replica.requests_in_flight for replica in replicas] == [0, 0])
        assert [(engine.stats().running_requests, engine.stats().waiting_requests) for engine in engines] == [(0, 0), (0, 0)]
    for engine in engines:
        await engine.close()


async def test_churn_while_replicas_die_ends_every_request_once() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        engines = [FakeEngine(TIMING) for _ in range(3)]
        replicas = [await cluster.replica(engine) for engine in engines]
        dispatcher = await cluster.dispatcher(replicas=3)

        async def client() -> list[Reason | None]:
            ends: list[Reason | None] = []
            for _ in range(10):
                try:
                    await read_all(await dispatcher.open_generation(MODEL, generation(20)))
                    ends.append(None)
                except ServeError as error:
                    ends.append(error.reason)
            return ends

        clients = asyncio.gather(*(client() for _ in range(32)))
        for replica in replicas[:2]:
            await asyncio.sleep(0.1)
            await replica.stop()
        ends = [end for each in await asyncio.wait_for(clients, 60) for end in each]
        assert len(ends) == 320
        assert set(ends) <= {None, Reason.REPLICA_LOST, Reason.DRAINING, Reason.NO_READY_REPLICA}
        assert ends.count(None) > 200
        await until(lambda: router.state.lease_count() == 0)
        assert dispatcher.requests_in_flight == 0
    for engine in engines:
        await engine.close()


async def test_two_thousand_requests_at_once_are_all_served() -> None:
    generating, embedding = FakeEngine(FakeTiming(ttft_s=0.01, itl_s=0.01)), FakeEngine(TIMING)
    async with LinkCluster() as cluster:
        router = await cluster.router()
        await cluster.replica(generating)
        await cluster.replica(embedding, Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher(replicas=2)

        async def generate() -> int:
            deltas = await read_all(await dispatcher.open_generation(MODEL, generation(5)))
            return sum(len(sequence.token_ids) for delta in deltas for sequence in delta.sequences)

        async def embed(number: int) -> int:
            request = EmbeddingRequest(f"e{number}", (number + 1,), Pooling.MEAN)
            return len((await dispatcher.embed(MODEL, request)).values) and 1

        counts = await asyncio.wait_for(asyncio.gather(*(generate() for _ in range(1500)), *(embed(number) for number in range(500))), 60)
        assert all(1 <= tokens <= 5 for tokens in counts)
        await until(lambda: router.state.lease_count() == 0)
        assert dispatcher.requests_in_flight == 0
    await generating.close()
    await embedding.close()
