"""A repeat of a request_id that comes to another gateway: one run, one answer, from the gateway that has it."""

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
from neox_serve.gateway.server.joins import JoinServer
from tests.fakes.gateways import running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, until

TIMING = FakeTiming(ttft_s=0.02, itl_s=0.01)


@dataclass(slots=True)
class Pair:
    """Two gateways of one router. asked: what came to their engine."""

    clients: list[AsyncClient] = field(default_factory=list)
    joins: list[JoinServer] = field(default_factory=list)
    dispatchers: list[LinkDispatcher] = field(default_factory=list)
    asked: list[GenerationRequest] = field(default_factory=list)
    failing: bool = False


@asynccontextmanager
async def two_gateways(**limits: Any) -> AsyncIterator[Pair]:
    pair = Pair()

    def noted(request: GenerationRequest) -> Fault | None:
        pair.asked.append(request)
        return Fault(ServeError(Reason.ENGINE_FAILED, "broken"), after_tokens=2) if pair.failing else None

    engine = FakeEngine(TIMING, faults=noted)
    async with LinkCluster() as cluster, AsyncExitStack() as stack:
        await cluster.router()
        await cluster.replica(engine)
        for name in ("a", "b"):
            dispatcher = cluster.unstarted(name)
            server = await stack.enter_async_context(running_gateway(dispatcher, model={"name": MODEL}, limits=limits))
            joins = JoinServer(server.repeats, None)
            await joins.start("127.0.0.1")
            stack.push_async_callback(joins.stop)
            dispatcher.gateway_link_address = joins.address
            await cluster.start(dispatcher)
            pair.clients.append(await stack.enter_async_context(AsyncClient(f"127.0.0.1:{server.port}")))
            pair.joins.append(joins)
            pair.dispatchers.append(dispatcher)
        yield pair
    await engine.close()


async def stream(client: AsyncClient, request_id: str) -> list[Any]:
    return [event async for event in client.stream([5, 6], max_tokens=20, request_id=request_id)]


async def refusal(client: AsyncClient, prompt: list[int], request_id: str) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await client.generate(prompt, max_tokens=4, request_id=request_id)
    return caught.value


async def test_repeat_of_a_call_that_ran_elsewhere_gets_its_answer_and_does_not_run() -> None:
    async with two_gateways() as pair:
        first, second = pair.clients
        answer = await first.generate([5, 6], max_tokens=4, request_id="one")
        assert await second.generate([5, 6], max_tokens=4, request_id="one") == answer
        assert len(pair.asked) == 1
        assert (await second.generate([5, 6], max_tokens=4, request_id="two")).text == answer.text
        assert len(pair.asked) == 2


async def test_repeat_of_a_stream_that_runs_elsewhere_gets_every_event() -> None:
    async with two_gateways() as pair:
        first = asyncio.create_task(stream(pair.clients[0], "one"))
        await until(lambda: pair.asked)
        await asyncio.sleep(0.05)
        repeat = await stream(pair.clients[1], "one")
        assert repeat == await first
        assert isinstance(repeat[-1], StreamFinal)
        assert len(pair.asked) == 1


async def test_repeat_with_another_message_is_refused_as_on_the_gateway_that_has_the_call() -> None:
    async with two_gateways() as pair:
        await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        refused = [await refusal(client, [5, 7], "one") for client in pair.clients]
        assert refused[0] == refused[1]
        assert refused[0].reason is Reason.INVALID_ARGUMENT
        assert [violation.field for violation in refused[0].violations] == ["request_id"]
        assert len(pair.asked) == 1
        await pair.clients[1].generate([5, 7], max_tokens=4, request_id="two")
        assert len(pair.asked) == 2


async def test_call_that_failed_elsewhere_may_be_tried_again_here() -> None:
    async with two_gateways() as pair:
        pair.failing = True
        with pytest.raises(ServeError):
            await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        pair.failing = False
        await pair.clients[1].generate([5, 6], max_tokens=4, request_id="one")
        assert len(pair.asked) == 2


async def test_gateway_that_is_gone_answers_nothing_and_the_repeat_runs_here() -> None:
    async with two_gateways() as pair:
        answer = await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        await pair.joins[0].stop()
        assert (await pair.clients[1].generate([5, 6], max_tokens=4, request_id="one")).text == answer.text
        assert len(pair.asked) == 2


async def test_answer_that_is_forgotten_elsewhere_is_made_anew() -> None:
    async with two_gateways(idempotency_window_s=0.0) as pair:
        await pair.clients[0].generate([5, 6], max_tokens=4, request_id="one")
        await pair.clients[1].generate([5, 6], max_tokens=4, request_id="one")
        assert len(pair.asked) == 2
