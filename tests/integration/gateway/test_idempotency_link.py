"""A repeat that arrives at another gateway: the request runs once, and the owner's response is copied."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from neox_serve.client import AsyncClient, StreamFinal
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import GenerationRequest
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming, Fault
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.gateway.server.idempotency_link import IdempotencyLinkServer
from tests.fakes.gateways import running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, until

TIMING = FakeTiming(ttft_s=0.02, itl_s=0.01)


@dataclass(slots=True)
class Pair:
    """Two gateways of one router."""

    clients: list[AsyncClient] = field(default_factory=list)
    links: list[IdempotencyLinkServer] = field(default_factory=list)
    dispatchers: list[LinkDispatcher] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)
    """Requests that reached the engine."""
    failing: bool = False


@asynccontextmanager
async def two_gateways(**limits: Any) -> AsyncIterator[Pair]:
    pair = Pair()

    def record(request: GenerationRequest) -> Fault | None:
        pair.requests.append(request)
        return Fault(ServeError(Reason.ENGINE_FAILED, "broken"), after_tokens=2) if pair.failing else None

    engine = FakeEngine(TIMING, faults=record)
    async with LinkCluster() as cluster, AsyncExitStack() as stack:
        await cluster.router()
        await cluster.replica(engine)
        for name in ("a", "b"):
            dispatcher = cluster.unstarted(name)
            server = await stack.enter_async_context(running_gateway(dispatcher, model={"name": MODEL}, limits=limits))
            link = IdempotencyLinkServer(server.idempotency_cache, None)
            await link.start("127.0.0.1")
            stack.push_async_callback(link.stop)
            dispatcher.gateway_link_address = link.address
            await cluster.start(dispatcher)
            pair.clients.append(await stack.enter_async_context(AsyncClient(f"127.0.0.1:{server.port}")))
            pair.links.append(link)
            pair.dispatchers.append(dispatcher)
        yield pair
    await engine.close()


async def stream(client: AsyncClient, request_id: str, max_tokens: int = 20) -> list[Any]:
    return [event async for event in client.stream([5, 6], max_tokens=max_tokens, request_id=request_id)]


async def refusal(client: AsyncClient, prompt: list[int], request_id: str) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await client.generate(prompt, max_tokens=4, request_id=request_id)
    return caught.value


async def test_repeat_of_a_call_completed_elsewhere_returns_its_response_without_running() -> None:
    async with two_gateways() as pair:
        first, second = pair.clients
        answer = await first.generate([5, 6], max_tokens=4, request_id="one")
        assert await second.generate([5, 6], max_tokens=4, request_id="one") == answer
        assert len(pair.requests) == 1
        assert (await second.generate([5, 6], max_tokens=4, request_id="two")).text == answer.text
        assert len(pair.requests) == 2


async def test_repeat_of_a_stream_running_elsewhere_sends_every_event() -> None:
    async with two_gateways() as pair:
        first = asyncio.create_task(stream(pair.clients[0], "one"))
        await until(lambda: pair.requests)
        await asyncio.sleep(0.05)
        repeat = await stream(pair.clients[1], "one")
        assert repeat == await first
        assert isinstance(repeat[-1], StreamFinal)
        assert len(pair.requests) == 1


async def test_repeat_with_another_message_is_refused_alike_by_both_gateways() -> None:
    async with two_gateways() as pair:
        await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        refused = [await refusal(client, [5, 7], "one") for client in pair.clients]
        assert refused[0] == refused[1]
        assert refused[0].reason is Reason.INVALID_ARGUMENT
        assert [violation.field for violation in refused[0].violations] == ["request_id"]
        assert len(pair.requests) == 1
        await pair.clients[1].generate([5, 7], max_tokens=4, request_id="two")
        assert len(pair.requests) == 2


async def test_call_that_failed_elsewhere_may_be_repeated_here() -> None:
    async with two_gateways() as pair:
        pair.failing = True
        with pytest.raises(ServeError):
            await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        pair.failing = False
        await pair.clients[1].generate([5, 6], max_tokens=4, request_id="one")
        assert len(pair.requests) == 2


async def test_owner_that_is_gone_is_taken_over_and_the_repeat_runs_here() -> None:
    async with two_gateways() as pair:
        answer = await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        await pair.links[0].stop()
        assert (await pair.clients[1].generate([5, 6], max_tokens=4, request_id="one")).text == answer.text
        assert len(pair.requests) == 2


async def test_response_that_the_owner_has_evicted_is_generated_again() -> None:
    async with two_gateways(idempotency_window_s=0.0) as pair:
        await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        await pair.clients[1].generate([5, 6], max_tokens=4, request_id="one")
        assert len(pair.requests) == 2


async def test_owner_lost_in_the_middle_of_a_stream_fails_the_repeat_and_leaves_no_complete_response() -> None:
    async with two_gateways() as pair:
        first = asyncio.create_task(stream(pair.clients[0], "one", max_tokens=2000))
        await until(lambda: pair.requests)
        repeat = pair.clients[1].stream([5, 6], max_tokens=2000, request_id="one")
        await anext(repeat)
        await pair.links[0].stop()
        with pytest.raises(ServeError) as caught:
            [_ async for _ in repeat]
        assert caught.value.reason is Reason.REPLICA_LOST
        assert len(pair.requests) == 1
        first.cancel()
