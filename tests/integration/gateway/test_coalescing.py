"""Streams whose client asks for fewer and larger chunks, from the client to an engine whose steps the test makes.

The interval of ten seconds stands for "not while this test runs": what arrives has not waited for it.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server import deadlines
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, until
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher
from tests.fakes.scripted_engine import ScriptedEngine

LONG = {"minChunkInterval": "10s"}
SHORT_S = 0.03
SHORT = {"minChunkInterval": f"{SHORT_S}s"}


@dataclass(frozen=True, slots=True)
class Path:
    """A gateway, its client and its engine."""

    engine: ScriptedEngine
    server: GatewayServer
    stubs: Stubs

    async def stream(self, options: dict[str, Any], timeout_s: float | None = None, **parameters: Any) -> Any:
        """Starts a call and waits until the engine has it."""
        call = self.stubs.inference.StreamGenerate(request(options, **parameters), timeout=timeout_s)
        await until(lambda: self.engine.live)
        return call


@pytest.fixture
async def path() -> AsyncIterator[Path]:
    async with LinkCluster() as cluster:
        await cluster.router()
        engine = ScriptedEngine()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        async with running_gateway(dispatcher, model={"name": MODEL}) as server, connected(server.port) as stubs:
            yield Path(engine, server, stubs)
            await until(lambda: not (server.requests_in_flight or engine.live))


def request(options: dict[str, Any], **parameters: Any) -> inference_service_pb2.StreamGenerateRequest:
    fields = {"prompt": {"tokenIds": {"ids": [5]}}, "parameters": parameters, "options": options}
    return json_format.ParseDict(fields, inference_service_pb2.StreamGenerateRequest())


async def next_chunk(call: Any) -> inference_service_pb2.StreamChunk:
    async with asyncio.timeout(5):
        event: inference_service_pb2.StreamGenerateResponse = await anext(aiter(call))
    assert event.WhichOneof("event") == "chunk"
    return event.chunk


async def test_first_token_is_sent_at_once_and_the_end_releases_held_tokens(path: Path) -> None:
    call = await path.stream(LONG)
    path.engine.step(text="a")
    assert (await next_chunk(call)).text == "a"
    for text in "bcd":
        path.engine.step(text=text)
    path.engine.step(text="e", end=True)
    chunk, final = [event async for event in call]
    assert (chunk.chunk.text, list(chunk.chunk.token_ids)) == ("bcde", [1, 2, 3, 4])
    assert final.final.usage.completion_tokens == 5


async def test_chunk_is_sent_after_the_interval_even_if_the_engine_is_silent(path: Path) -> None:
    call = await path.stream(SHORT)
    path.engine.step(text="a")
    await next_chunk(call)
    path.engine.step(text="b")
    assert (await next_chunk(call)).text == "b"
    call.cancel()


async def test_chunk_is_sent_once_it_has_the_minimum_tokens(path: Path) -> None:
    call = await path.stream({"minChunkTokens": 3})
    path.engine.step(text="a")
    await next_chunk(call)
    for text in "bcd":
        path.engine.step(text=text)
    assert (await next_chunk(call)).text == "bcd"
    call.cancel()


async def test_cancel_while_a_chunk_is_held_frees_the_engine(path: Path) -> None:
    call = await path.stream(LONG)
    path.engine.step()
    await next_chunk(call)
    path.engine.step()
    call.cancel()
    await until(lambda: path.engine.aborted)


async def test_failure_follows_the_held_chunk(path: Path) -> None:
    call = await path.stream(LONG)
    path.engine.step(text="a")
    await next_chunk(call)
    path.engine.step(text="b")
    path.engine.step(failure=ServeError(Reason.REPLICA_LOST, "gone", retry_after_s=0.5))
    assert (await next_chunk(call)).text == "b"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await next_chunk(call)
    assert from_rpc_error(caught.value).reason is Reason.REPLICA_LOST


async def test_partial_text_at_the_deadline_includes_held_tokens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "PARTIAL_MARGIN_S", 0.5)
    call = await path.stream(LONG, timeout_s=2.0, onDeadline="DEADLINE_BEHAVIOR_RETURN_PARTIAL")
    path.engine.step(text="a")
    await next_chunk(call)
    for text in "bc":
        path.engine.step(text=text)
    chunk, last = [event async for event in call]
    assert chunk.chunk.text == "bc"
    assert last.final.finishes[0].reason == generation_pb2.FINISH_REASON_DEADLINE
    assert last.final.usage.completion_tokens == 3


async def test_deadline_ends_a_call_with_a_held_chunk(path: Path) -> None:
    call = await path.stream(LONG, timeout_s=1.0)
    path.engine.step()
    await next_chunk(call)
    path.engine.step()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        assert [event async for event in call]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: path.engine.aborted)


async def scripted_events(script: Script, options: dict[str, Any], **parameters: Any) -> list[Any]:
    async with running_gateway(ScriptedDispatcher(script=script)) as server, connected(server.port) as stubs:
        return [event async for event in stubs.inference.StreamGenerate(request(options, **parameters))]


async def test_number_of_chunks_is_bounded_by_duration_over_interval() -> None:
    *chunks, last = await scripted_events(Script(tokens=100, interval_s=0.002), SHORT)
    assert sum(len(event.chunk.token_ids) for event in chunks) == 100
    first_and_last = 2
    assert len(chunks) <= first_and_last + last.final.timings.total.ToNanoseconds() / 1e9 / SHORT_S


@pytest.mark.parametrize("options", [LONG, {"minChunkTokens": 1024}, {"minChunkTokens": 9} | SHORT], ids=["long", "large", "both"])
async def test_every_completion_gets_its_whole_text_and_one_final_event(options: dict[str, Any]) -> None:
    events = await scripted_events(Script(tokens=20, interval_s=0.001), options, n=3)
    assert [event.WhichOneof("event") for event in events].index("final") == len(events) - 1
    for index in range(3):
        mine = [event.chunk for event in events[:-1] if event.chunk.index == index]
        assert [token for chunk in mine for token in chunk.token_ids] == list(range(20))
        assert "".join(chunk.text for chunk in mine) == " x" * 20
        assert all(len(chunk.token_ids) >= options.get("minChunkTokens", 1) for chunk in mine[1:-1])
    assert events[-1].final.usage.completion_tokens == 60


async def test_interval_longer_than_the_stream_gives_two_chunks() -> None:
    *chunks, _ = await scripted_events(Script(tokens=20, interval_s=0.001), LONG)
    assert len(chunks) == 2
