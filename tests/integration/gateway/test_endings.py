"""However a call ends, it leaves nothing behind: no slot in the gateway, and no request in an engine.

Cancel, loss of the client, deadline, error and shutdown, each for the unary and the streaming call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from google.rpc import code_pb2

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server import deadlines
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher

PARTIAL = generation_pb2.DEADLINE_BEHAVIOR_RETURN_PARTIAL
PROMPT = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5]))
SLOW = Script(tokens=None, interval_s=0.02)
SILENT = Script(silent=True)


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher(script=SLOW)


@pytest.fixture
async def server(dispatcher: ScriptedDispatcher) -> AsyncIterator[GatewayServer]:
    async with running_gateway(dispatcher) as server:
        yield server


@pytest.fixture
async def stubs(server: GatewayServer) -> AsyncIterator[Stubs]:
    async with connected(server.port) as stubs:
        yield stubs


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition changes in the server
            await asyncio.sleep(0.002)


def unary(stubs: Stubs, timeout_s: float | None = None, **parameters: object) -> "asyncio.Task[object]":
    request = inference_service_pb2.GenerateRequest(
        prompts=[PROMPT, PROMPT],
        parameters=generation_pb2.GenerationParameters(**parameters),  # type: ignore[arg-type]
    )

    async def run() -> object:
        return await stubs.inference.Generate(request, timeout=timeout_s)

    return asyncio.ensure_future(run())


def stream(stubs: Stubs, timeout_s: float | None = None, **parameters: object) -> "asyncio.Task[object]":
    request = inference_service_pb2.StreamGenerateRequest(
        prompt=PROMPT,
        parameters=generation_pb2.GenerationParameters(**parameters),  # type: ignore[arg-type]
    )

    async def run() -> object:
        call = stubs.inference.StreamGenerate(request, timeout=timeout_s)
        try:
            return [event async for event in call]
        finally:
            call.cancel()  # grpcio does not if the reading task is cancelled before it has read anything

    return asyncio.ensure_future(run())


def embed(stubs: Stubs, timeout_s: float | None = None) -> "asyncio.Task[object]":
    request = inference_service_pb2.EmbedRequest(inputs=[PROMPT, PROMPT])

    async def run() -> object:
        return await stubs.inference.Embed(request, timeout=timeout_s)

    return asyncio.ensure_future(run())


Start = Callable[..., "asyncio.Task[object]"]
kinds = pytest.mark.parametrize("start", [unary, stream, embed])
scripts = pytest.mark.parametrize("script", [SLOW, SILENT, Script(admission_s=30)], ids=["generating", "silent", "in admission"])


def started(dispatcher: ScriptedDispatcher) -> bool:
    return bool(dispatcher.opened or dispatcher.embedded)


def nothing_left(server: GatewayServer, dispatcher: ScriptedDispatcher) -> bool:
    in_flight = [line for line in server.metrics_text().splitlines() if line.startswith("neox_serve_gateway_calls_in_flight{")]
    idle = all(line.endswith(" 0.0") for line in in_flight)
    return idle and not (dispatcher.live or dispatcher.live_embeddings or server.requests_in_flight)


async def failure(task: "asyncio.Task[object]") -> ServeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(task, 10)
    return from_rpc_error(caught.value)


@kinds
@scripts
async def test_cancelled_call_leaves_no_resources(
    start: Start, script: Script, server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    dispatcher.script = script
    task = start(stubs)
    await until(lambda: started(dispatcher))
    task.cancel()
    await until(lambda: nothing_left(server, dispatcher))


@kinds
@scripts
async def test_lost_client_leaves_no_resources(start: Start, script: Script, server: GatewayServer, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = script
    async with connected(server.port) as stubs:
        task = start(stubs)
        await until(lambda: started(dispatcher))
    await until(lambda: nothing_left(server, dispatcher))
    await asyncio.gather(task, return_exceptions=True)


@kinds
@scripts
async def test_deadline_ends_the_call_and_leaves_no_resources(
    start: Start, script: Script, server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    dispatcher.script = script if start is not embed else SILENT
    error = await failure(start(stubs, 0.2))
    assert error.reason is Reason.DEADLINE_EXCEEDED
    await until(lambda: nothing_left(server, dispatcher))


@kinds
async def test_call_without_deadline_gets_the_default_one(start: Start) -> None:
    dispatcher = ScriptedDispatcher(script=SILENT)
    async with running_gateway(dispatcher, gateway={"default_deadline_s": 0.2}) as server, connected(server.port) as stubs:
        error = await failure(start(stubs))
        assert error.reason is Reason.DEADLINE_EXCEEDED
        assert "0.200 s" in error.message
        await until(lambda: nothing_left(server, dispatcher))


@kinds
@pytest.mark.parametrize("reason", [Reason.REPLICA_LOST, Reason.ENGINE_FAILED, Reason.OVERLOADED])
async def test_failing_engine_fails_the_call_and_leaves_no_resources(
    start: Start, reason: Reason, server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    dispatcher.script = Script(failure=ServeError(reason, "secret detail", retry_after_s=0.5), fails_at=1)
    error = await failure(start(stubs))
    assert (error.reason, error.retry_after_s) == (reason, 0.5)
    assert ("secret" in error.message) == (reason is not Reason.ENGINE_FAILED)
    await until(lambda: nothing_left(server, dispatcher))


@pytest.mark.parametrize("start", [unary, stream])
async def test_refused_admission_fails_the_call(start: Start, server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(refusal=ServeError(Reason.NO_READY_REPLICA, "none", retry_after_s=1.0))
    error = await failure(start(stubs))
    assert (error.reason, error.retry_after_s) == (Reason.NO_READY_REPLICA, 1.0)
    assert nothing_left(server, dispatcher)


@kinds
async def test_drain_finishes_running_calls_and_refuses_new_ones(start: Start, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(tokens=5, interval_s=0.05, first_s=0.2)
    async with running_gateway(dispatcher) as server, connected(server.port) as stubs:
        running = start(stubs)
        await until(lambda: started(dispatcher))
        drained = asyncio.ensure_future(server.drain(10))
        await asyncio.sleep(0.01)
        error = await failure(start(stubs))
        assert error.reason is Reason.DRAINING
        assert error.retry_after_s is not None
        assert await running
        await asyncio.wait_for(drained, 20)
        assert nothing_left(server, dispatcher)


@kinds
@scripts
async def test_shutdown_fails_calls_that_outlast_the_drain(start: Start, script: Script) -> None:
    dispatcher = ScriptedDispatcher(script=script if start is not embed else SILENT)
    async with running_gateway(dispatcher) as server, connected(server.port) as stubs:
        running = start(stubs)
        await until(lambda: started(dispatcher))
        await server.drain(0.05)
        assert (await failure(running)).reason is Reason.DRAINING
        await until(lambda: nothing_left(server, dispatcher))


async def test_call_above_the_concurrency_limit_is_refused_with_retry_info(dispatcher: ScriptedDispatcher) -> None:
    async with running_gateway(dispatcher, gateway={"max_concurrent_requests": 3}) as server, connected(server.port) as stubs:
        running = [stream(stubs) for _ in range(3)]
        await until(lambda: len(dispatcher.opened) == 3)
        error = await failure(stream(stubs))
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after_s is not None
        assert len(dispatcher.opened) == 3
        running.pop().cancel()
        await until(lambda: server.requests_in_flight == 2)
        assert not running[0].done()
        again = stream(stubs)
        await until(lambda: len(dispatcher.opened) == 4)
        for task in (*running, again):
            task.cancel()
        await until(lambda: nothing_left(server, dispatcher))


@pytest.fixture
def wide_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives partial responses half a second to arrive, because these tests check their content, also on busy machines."""
    monkeypatch.setattr(deadlines, "PARTIAL_MARGIN_S", 0.5)


@pytest.mark.usefixtures("wide_margin")
@pytest.mark.parametrize("script", [SLOW, SILENT, Script(admission_s=30)], ids=["generating", "silent", "in admission"])
async def test_partial_unary_response_arrives_before_the_deadline(
    script: Script, server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    dispatcher.script = script
    began_s = time.monotonic()
    response = await unary(stubs, 2.0, on_deadline=PARTIAL, n=2)
    assert time.monotonic() - began_s < 2.0
    assert isinstance(response, inference_service_pb2.GenerateResponse)
    completions = [completion for result in response.results for completion in result.completions]
    assert [completion.finish.reason for completion in completions] == [generation_pb2.FINISH_REASON_DEADLINE] * 4
    assert all(bool(completion.text) == (script is SLOW) for completion in completions)
    assert response.usage.completion_tokens == sum(len(completion.token_ids) for completion in completions)
    assert response.usage.prompt_tokens == 2
    await until(lambda: nothing_left(server, dispatcher))


@pytest.mark.usefixtures("wide_margin")
@pytest.mark.parametrize("script", [SLOW, SILENT, Script(admission_s=30)], ids=["generating", "silent", "in admission"])
async def test_partial_stream_ends_with_its_final_event_before_the_deadline(
    script: Script, server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    dispatcher.script = script
    events = await stream(stubs, 2.0, on_deadline=PARTIAL, n=2)
    assert isinstance(events, list)
    *chunks, last = events
    assert all(event.WhichOneof("event") == "chunk" for event in chunks)
    assert bool(chunks) == (script is SLOW)
    assert [finish.reason for finish in last.final.finishes] == [generation_pb2.FINISH_REASON_DEADLINE] * 2
    assert last.final.usage.completion_tokens == sum(len(event.chunk.token_ids) for event in chunks)
    await until(lambda: nothing_left(server, dispatcher))


async def test_engine_that_ends_without_finishing_is_an_internal_error(
    server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    dispatcher.script = Script(failure=ServeError(Reason.INTERNAL, "inside"), fails_at=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(stubs)
    assert caught.value.code().value[0] == code_pb2.INTERNAL
    assert "inside" not in (caught.value.details() or "")
