"""Client, gateway, router, link and replica in one process with the fake engine: what clients see, and that nothing is left behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from neox_serve.core.errors import Reason
from neox_serve.core.types import Pool, SequenceDelta
from neox_serve.engine.fake.engine import FakeTiming
from neox_serve.engine.fake.outputs import Vocabulary
from neox_serve.gateway.server import deadlines
from neox_serve.replica.server import ReplicaServer
from neox_serve.v1 import generation_pb2, inference_service_pb2, ops_service_pb2
from neox_serve.wire.public_messages import ChunkWriter
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import connected
from tests.fakes.link_cluster import MODEL, until
from tests.fakes.whole_path import FAILING_PROMPT, Path, events_of, stream_request, unary_request, whole_path

SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


@pytest.fixture
async def path() -> AsyncIterator[Path]:
    async with whole_path() as path:
        yield path


@pytest.mark.parametrize(
    "parameters",
    [
        {"stopping": {"maxTokens": 12}},
        {"stopping": {"maxTokens": 12}, "n": 3, "sampling": {"seed": "9"}},
        {"stopping": {"maxTokens": 12}, "logprobs": 2, "promptLogprobs": 1},
        {"stopping": {"maxTokens": 40, "stopSequences": ["tok9"]}},
        {"stopping": {"maxTokens": 12}, "structuredOutput": {"choice": {"texts": ["yes", "no"]}}},
    ],
    ids=["plain", "n", "logprobs", "stop", "choice"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"minChunkInterval": "0.03s"}, {"minChunkInterval": "0.03s", "minChunkTokens": 5}],
    ids=["every step", "interval", "interval and tokens"],
)
async def test_concatenated_stream_equals_the_unary_response(path: Path, parameters: dict[str, Any], options: dict[str, Any]) -> None:
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


async def test_beam_search_returns_the_requested_beams_best_first(path: Path) -> None:
    request = unary_request(stopping={"maxTokens": 6})
    request.beam_search.beam_width = 4
    request.beam_search.num_return = 2
    (result,) = (await path.stubs.inference.Generate(request)).results
    assert [completion.index for completion in result.completions] == [0, 1]
    assert result.completions[0].score >= result.completions[1].score
    await path.nothing_left()


async def test_status_under_load_shows_the_load_of_the_replica() -> None:
    async with whole_path(vocabulary=Vocabulary(kv_capacity_tokens=2000)) as path:
        call = path.stubs.inference.StreamGenerate(stream_request())
        # Above any fraction, so that a value in the wrong field fails the test.
        replica = await shown(path, lambda replica: replica.output_tokens_per_second > 1 and replica.kv_usage_fraction > 0)
        assert (replica.replica_id, replica.model) == (path.replicas[0].replica_id, MODEL)
        assert (replica.pool, replica.state) == (ops_service_pb2.POOL_KIND_GENERATION, ops_service_pb2.REPLICA_STATE_READY)
        assert (replica.running_requests, replica.waiting_requests, replica.outstanding_tokens) == (1, 0, 1003)
        assert 3 / 2000 < replica.kv_usage_fraction <= 1003 / 2000
        status = await path.stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
        pool = status.pools[0]
        assert (pool.kind, pool.requests_in_flight, pool.outstanding_tokens) == (ops_service_pb2.POOL_KIND_GENERATION, 1, 1003)
        (gateway,) = status.gateways
        assert gateway.requests_in_flight == 1
        assert min(replica.age.ToNanoseconds(), gateway.age.ToNanoseconds()) > 0
        call.cancel()
        await path.nothing_left()


async def test_status_shows_a_draining_replica_and_one_with_a_dead_engine() -> None:
    async with whole_path(replicas=2) as path:
        await path.replicas[0].drain(1.0)
        path.engines[1].die()
        await shown_as(path, path.replicas[0], ops_service_pb2.REPLICA_STATE_DRAINING)
        await shown_as(path, path.replicas[1], ops_service_pb2.REPLICA_STATE_UNHEALTHY)
        await until(lambda: not path.dispatcher.ready_replicas(Pool.GENERATION))
        status = await path.stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
        assert [pool.ready_replicas for pool in status.pools] == [0, 1]
        assert [condition.reason for condition in status.conditions] == ["NO_READY_REPLICA"]


async def shown(path: Path, expected: Callable[[ops_service_pb2.ReplicaStatus], bool]) -> ops_service_pb2.ReplicaStatus:
    """Returns the first replica that an operator sees in this state. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            status = await path.stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
            if found := [replica for replica in status.replicas if expected(replica)]:
                return found[0]
            await asyncio.sleep(0.01)


async def shown_as(path: Path, replica: ReplicaServer, state: ops_service_pb2.ReplicaState.ValueType) -> None:
    """Returns once operators see the replica in this state."""
    await shown(path, lambda one: (one.replica_id, one.state) == (replica.replica_id, state))


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
async def test_ended_calls_leave_no_slot_lease_or_engine_request(path: Path, way: str, kind: str) -> None:
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
        expected = {
            "cancel": grpc.StatusCode.CANCELLED,
            "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
            "error": grpc.StatusCode.INTERNAL,
            "shutdown": grpc.StatusCode.UNAVAILABLE,
            "loss": grpc.StatusCode.CANCELLED,
        }
        assert code is expected[way]
        await path.nothing_left()


@pytest.fixture
def wide_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives partial responses half a second to arrive, because these tests check their content, also on busy machines."""
    monkeypatch.setattr(deadlines, "PARTIAL_MARGIN_S", 0.5)


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


async def test_client_that_never_reads_loses_its_call_and_slows_no_other() -> None:
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


async def test_router_down_is_reported_and_stops_no_call(path: Path) -> None:
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


async def test_dead_engine_fails_streams_with_unavailable_and_retry_info(path: Path) -> None:
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


async def test_fault_in_the_middle_of_a_stream_fails_only_that_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, chunks_of_two = ChunkWriter.write_sequences, count(1)

    def breaks_at_the_third(writer: ChunkWriter, sequences: Sequence[SequenceDelta]) -> list[bytes]:
        if any(sequence.index == 1 for sequence in sequences) and next(chunks_of_two) == 3:
            raise LookupError("a bug")
        return write(writer, sequences)

    monkeypatch.setattr(ChunkWriter, "write_sequences", breaks_at_the_third)
    healthy = asyncio.ensure_future(events_of(path, stream_request(stopping={"maxTokens": 60})))
    assert await _reason(path.stubs.inference.StreamGenerate(stream_request(n=2))) is Reason.INTERNAL
    assert (await healthy)[-1].final.usage.completion_tokens == 60
    await path.nothing_left()


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
    """Reads a stream to its end, which is the only way to get its status."""
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
