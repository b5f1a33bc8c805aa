"""Client, gateway, router, link and replica in one process, over the fake engine: what clients see, and that nothing is left behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import GenerationRequest, Pool
from neox_serve.engine.fake_engine import FakeEngine, FakeTiming, Fault
from neox_serve.gateway import calls
from neox_serve.gateway.server import GatewayServer
from neox_serve.link.dispatcher import Dispatcher
from neox_serve.link.router_server import RouterServer
from neox_serve.v1 import generation_pb2, inference_service_pb2, ops_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, until

TIMING = FakeTiming(ttft_s=0.01, itl_s=0.01)
FAILING_PROMPT = 666
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


@dataclass(frozen=True, slots=True)
class Path:
    """All parts from the client to the engines."""

    cluster: LinkCluster
    router: RouterServer
    dispatcher: Dispatcher
    server: GatewayServer
    stubs: Stubs
    engines: tuple[FakeEngine, ...]

    def engines_idle(self) -> bool:
        """Whether no engine has a request."""
        return all(engine.stats().running_requests + engine.stats().waiting_requests == 0 for engine in self.engines)

    async def nothing_left(self) -> None:
        """Returns when gateway, dispatcher, engines and the router's leases are empty. Raises TimeoutError."""
        await until(lambda: self.engines_idle() and not (self.server.requests_in_flight or self.dispatcher.requests_in_flight))
        async with asyncio.timeout(20):
            while await self._leases():  # noqa: ASYNC110 - the router is asked
                await asyncio.sleep(0.01)

    async def _leases(self) -> int:
        view = await self.dispatcher.cluster_view(1.0)
        assert view.from_router
        return sum(replica.outstanding.requests for replica in view.replicas)


def faults(request: GenerationRequest) -> Fault | None:
    """Prompts that begin with a certain token fail after two tokens."""
    failure = ServeError(Reason.ENGINE_FAILED, "CUDA error in layer 7")
    return Fault(failure, after_tokens=2) if request.prompt_token_ids[0] == FAILING_PROMPT else None


@asynccontextmanager
async def whole_path(*, replicas: int = 1, timing: FakeTiming = TIMING, **gateway: Any) -> AsyncIterator[Path]:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        engines = tuple(FakeEngine(timing, faults=faults) for _ in range(replicas))
        embedder = FakeEngine(timing)
        for engine in engines:
            await cluster.replica(engine)
        await cluster.replica(embedder, Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher(replicas=replicas + 1)
        async with (
            running_gateway(dispatcher, model={"name": MODEL}, gateway=gateway) as server,
            connected(server.port) as stubs,
        ):
            yield Path(cluster, router, dispatcher, server, stubs, (*engines, embedder))
        for one in (*engines, embedder):
            await one.close()


@pytest.fixture
async def path() -> AsyncIterator[Path]:
    async with whole_path() as path:
        yield path


def stream_request(first: int = 5, **parameters: Any) -> inference_service_pb2.StreamGenerateRequest:
    fields = {"prompt": {"tokenIds": {"ids": [first, 6, 7]}}, "parameters": {"stopping": {"maxTokens": 1000}, **parameters}}
    return json_format.ParseDict(fields, inference_service_pb2.StreamGenerateRequest())


def unary_request(first: int = 5, prompts: int = 1, **parameters: Any) -> inference_service_pb2.GenerateRequest:
    stream = stream_request(first, **parameters)
    return inference_service_pb2.GenerateRequest(prompts=[stream.prompt] * prompts, parameters=stream.parameters)


async def events_of(path: Path, request: inference_service_pb2.StreamGenerateRequest) -> list[Any]:
    return [event async for event in path.stubs.inference.StreamGenerate(request)]


@pytest.mark.parametrize(
    "parameters",
    [
        {"stopping": {"maxTokens": 12}},
        {"stopping": {"maxTokens": 12}, "n": 3, "sampling": {"seed": "9"}},
        {"stopping": {"maxTokens": 12}, "logprobs": 2, "promptLogprobs": 1},
        {"stopping": {"maxTokens": 40, "stopSequences": ["tok9"]}},
        {"stopping": {"maxTokens": 12}, "guidedOutput": {"choice": {"texts": ["yes", "no"]}}},
    ],
    ids=["plain", "n", "logprobs", "stop", "choice"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"minChunkInterval": "0.03s"}, {"minChunkInterval": "0.03s", "minChunkTokens": 5}],
    ids=["every step", "interval", "interval and tokens"],
)
async def test_stream_joined_equals_the_unary_answer(path: Path, parameters: dict[str, Any], options: dict[str, Any]) -> None:
    unary = await path.stubs.inference.Generate(unary_request(**parameters))
    request = stream_request(**parameters)
    json_format.ParseDict(options, request.options)
    *chunks, last = await events_of(path, request)
    (result,) = unary.results
    for completion in result.completions:
        mine = [event.chunk for event in chunks if event.chunk.index == completion.index]
        assert "".join(chunk.text for chunk in mine) == completion.text
        assert [token for chunk in mine for token in chunk.token_ids] == list(completion.token_ids)
        assert [position for chunk in mine for position in chunk.logprobs] == list(completion.logprobs)
    assert list(last.final.finishes) == [completion.finish for completion in result.completions]
    assert list(last.final.prompt_logprobs) == list(result.prompt_logprobs)
    assert last.final.usage == unary.usage
    assert (last.final.HasField("seed"), last.final.seed) == (unary.HasField("seed"), unary.seed)
    await path.nothing_left()


STOP, LENGTH = generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize(
    ("stopping", "text", "ids", "reason", "stop"),
    [
        ({"maxTokens": 3}, "tok9 tok9 tok9 ", [9, 9, 9], LENGTH, None),
        ({"maxTokens": 8, "stopTokenIds": [9]}, "", [9], STOP, 9),
        ({"maxTokens": 8, "stopTokenIds": [9], "includeStopInOutput": True}, "tok9 ", [9], STOP, 9),
        ({"maxTokens": 8, "stopSequences": ["9 tok"]}, "tok", [9, 9], STOP, "9 tok"),
        ({"maxTokens": 8, "stopSequences": ["9 tok"], "includeStopInOutput": True}, "tok9 tok", [9, 9], STOP, "9 tok"),
    ],
)
async def test_biased_answer_ends_where_it_should_and_says_what_ended_it(
    path: Path, stopping: dict[str, Any], text: str, ids: list[int], reason: int, stop: str | int | None
) -> None:
    request = unary_request(stopping=stopping, sampling={"logitBias": {"9": 100.0}})
    ((completion,),) = [result.completions for result in (await path.stubs.inference.Generate(request)).results]
    assert (completion.text, list(completion.token_ids), completion.finish.reason) == (text, ids, reason)
    named = completion.finish.WhichOneof("stop")
    assert (getattr(completion.finish, named) if named else None) == stop


async def test_beam_search_returns_the_asked_beams_best_first(path: Path) -> None:
    request = unary_request(stopping={"maxTokens": 6})
    request.beam_search.beam_width = 4
    request.beam_search.num_return = 2
    (result,) = (await path.stubs.inference.Generate(request)).results
    assert [completion.index for completion in result.completions] == [0, 1]
    assert result.completions[0].score >= result.completions[1].score
    await path.nothing_left()


async def test_embed_and_status_over_the_whole_path(path: Path) -> None:
    request = inference_service_pb2.EmbedRequest(inputs=[generation_pb2.Prompt(text=text) for text in ("a", "b c")])
    response = await path.stubs.inference.Embed(request)
    for embedding in response.embeddings:
        assert sum(value * value for value in embedding.values) == pytest.approx(1.0, abs=1e-5)
    status = await path.stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
    assert [pool.ready_replicas for pool in status.pools] == [1, 1]
    assert len(status.replicas) == 2
    assert not status.conditions
    await path.nothing_left()


WAYS = ["cancel", "loss", "deadline", "error", "shutdown"]


@pytest.mark.parametrize("kind", ["unary", "stream"])
@pytest.mark.parametrize("way", WAYS)
async def test_no_slot_lease_or_engine_request_is_left(path: Path, way: str, kind: str) -> None:
    async with connected(path.server.port) as stubs:
        first = FAILING_PROMPT if way == "error" else 5
        timeout_s = 1.0 if way == "deadline" else None
        call: Any
        if kind == "unary":
            call = stubs.inference.Generate(unary_request(first, prompts=3), timeout=timeout_s)
            ended = asyncio.ensure_future(call.code())
        else:
            call = stubs.inference.StreamGenerate(stream_request(first), timeout=timeout_s)
            ended = asyncio.ensure_future(_code_at_the_end(call))
        await until(lambda: not path.engines_idle())
        if way == "cancel":
            call.cancel()
        elif way == "loss":
            await stubs.channel.close()
        elif way == "shutdown":
            await path.server.drain(0.05)
        code = await ended
        wanted = {
            "cancel": grpc.StatusCode.CANCELLED,
            "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
            "error": grpc.StatusCode.INTERNAL,
            "shutdown": grpc.StatusCode.UNAVAILABLE,
            "loss": grpc.StatusCode.CANCELLED,
        }
        assert code is wanted[way]
        await path.nothing_left()


@pytest.fixture
def wide_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second to bring an answer home: these tests are of what it says, on machines however busy."""
    monkeypatch.setattr(calls, "PARTIAL_MARGIN_S", 0.5)


@pytest.mark.usefixtures("wide_margin")
async def test_partial_text_at_the_deadline_frees_the_engine(path: Path) -> None:
    parameters: dict[str, Any] = {"onDeadline": "DEADLINE_BEHAVIOR_RETURN_PARTIAL"}
    response = await path.stubs.inference.Generate(unary_request(**parameters), timeout=2.0)
    (completion,) = response.results[0].completions
    assert completion.finish.reason == generation_pb2.FINISH_REASON_DEADLINE
    assert completion.text
    *chunks, last = [event async for event in path.stubs.inference.StreamGenerate(stream_request(**parameters), timeout=2.0)]
    assert last.final.finishes[0].reason == generation_pb2.FINISH_REASON_DEADLINE
    assert last.final.usage.completion_tokens == sum(len(event.chunk.token_ids) for event in chunks)
    await path.nothing_left()


async def test_client_that_never_reads_slows_nobody_and_loses_its_call() -> None:
    async with (
        whole_path(timing=FakeTiming(ttft_s=0.01, itl_s=0.001), stalled_client_timeout_s=1.0) as path,
        connected(path.server.port, *SMALL_WINDOW) as lazy,
    ):
        stalled = [lazy.inference.StreamGenerate(stream_request(n=16, logprobs=20)) for _ in range(2)]
        await until(lambda: path.server.requests_in_flight == 2)
        events = await events_of(path, stream_request(stopping={"maxTokens": 20}))
        assert events[-1].WhichOneof("event") == "final"
        await path.nothing_left()
        for call in stalled:
            assert await _reason(call) is Reason.CANCELLED


async def test_router_down_is_said_and_stops_nothing(path: Path) -> None:
    running = asyncio.ensure_future(events_of(path, stream_request(stopping={"maxTokens": 60})))
    await until(lambda: not path.engines_idle())
    await path.router.stop()
    await until(lambda: not path.dispatcher.router_connected)
    status = await path.stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
    assert [condition.reason for condition in status.conditions] == ["ROUTER_DOWN"]
    assert len(status.replicas) == 2
    fresh = await events_of(path, stream_request(stopping={"maxTokens": 5}))
    assert fresh[-1].final.usage.completion_tokens == 5
    assert (await running)[-1].final.usage.completion_tokens == 60


async def test_dead_engine_ends_streams_with_unavailable_and_a_time_to_retry(path: Path) -> None:
    call = path.stubs.inference.StreamGenerate(stream_request())
    await anext(aiter(call))
    path.engines[0].die()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    error = from_rpc_error(caught.value)
    assert error.reason is Reason.REPLICA_LOST
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error.retry_after_s is not None


async def test_request_without_a_token_moves_to_another_replica() -> None:
    async with whole_path(replicas=2, timing=FakeTiming(ttft_s=0.3, itl_s=0.001)) as path:
        call = asyncio.ensure_future(events_of(path, stream_request(stopping={"maxTokens": 4})))
        await until(lambda: not path.engines_idle())
        (busy,) = [engine for engine in path.engines if engine.stats().waiting_requests]
        busy.die()
        events = await call
        assert events[-1].final.usage.completion_tokens == 4
        await until(lambda: not path.dispatcher.requests_in_flight)


async def _code_at_the_end(call: Any) -> grpc.StatusCode:
    """Reads a stream to its end, which is the only way to its status."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        async for _ in call:
            pass
    code: grpc.StatusCode = await call.code()
    return code


async def _reason(call: Any) -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value).reason
