"""Idempotent requests of one gateway: a request id runs once and has one response, however often and however early it is repeated."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import until
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher(script=Script(tokens=6, interval_s=0.03))


@pytest.fixture
async def stubs(dispatcher: ScriptedDispatcher) -> AsyncIterator[Stubs]:
    async with running_gateway(dispatcher) as server, connected(server.port) as stubs:
        yield stubs


def prompt(token_id: int = 5) -> generation_pb2.Prompt:
    return generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[token_id]))


def unary(request_id: str, token_id: int = 5) -> inference_service_pb2.GenerateRequest:
    return inference_service_pb2.GenerateRequest(request_id=request_id, prompts=[prompt(token_id)])


def stream(request_id: str) -> inference_service_pb2.StreamGenerateRequest:
    return inference_service_pb2.StreamGenerateRequest(request_id=request_id, prompt=prompt())


async def events(call: Any) -> list[Any]:
    return [event async for event in call]


async def test_repeat_of_a_running_call_returns_its_response(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    answers = await asyncio.gather(*(stubs.inference.Generate(unary("one")) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert len(dispatcher.opened) == len(dispatcher.reserved) == 1


async def test_repeat_of_a_completed_call_returns_the_stored_response(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    first = await stubs.inference.Generate(unary("one"))
    assert await stubs.inference.Generate(unary("one")) == first
    assert (await stubs.inference.Generate(unary("two"))) != first
    assert len(dispatcher.opened) == 2


async def test_repeat_of_a_stream_sends_every_event_from_the_first_one(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    first = asyncio.create_task(events(stubs.inference.StreamGenerate(stream("one"))))
    await until(lambda: bool(dispatcher.streams))
    await asyncio.sleep(0.08)
    during = await events(stubs.inference.StreamGenerate(stream("one")))
    after = await events(stubs.inference.StreamGenerate(stream("one")))
    assert await first == during == after
    assert during[-1].WhichOneof("event") == "final"
    assert len(dispatcher.opened) == 1


async def test_repeat_with_another_message_is_refused_by_field(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    await stubs.inference.Generate(unary("one"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.inference.Generate(unary("one", token_id=6))
    error = from_rpc_error(caught.value)
    assert (error.reason, error.violations[0].field) == (Reason.INVALID_ARGUMENT, "request_id")


async def test_failed_call_may_be_repeated_with_its_request_id(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(failure=ServeError(Reason.REPLICA_LOST, "lost"))
    with pytest.raises(grpc.aio.AioRpcError):
        await stubs.inference.Generate(unary("one"))
    dispatcher.script = Script()
    assert (await stubs.inference.Generate(unary("one"))).results


async def test_repeat_of_a_cancelled_call_fails_with_overloaded(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(silent=True)
    first: Any = stubs.inference.Generate(unary("one"))
    await until(lambda: bool(dispatcher.streams))
    repeat = asyncio.ensure_future(_reason(stubs.inference.Generate(unary("one"))))
    await asyncio.sleep(0.1)
    first.cancel()
    assert await repeat is Reason.OVERLOADED
    await until(lambda: not dispatcher.live)


async def test_repeat_has_its_own_deadline(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(silent=True)
    first: Any = stubs.inference.Generate(unary("one"))
    await until(lambda: bool(dispatcher.streams))
    assert await _reason(stubs.inference.Generate(unary("one"), timeout=0.2)) is Reason.DEADLINE_EXCEEDED
    first.cancel()


async def _reason(call: Any) -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value).reason
