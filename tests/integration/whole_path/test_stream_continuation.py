"""A stream survives its replica: wherever the replica is killed, the reader receives every token once."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, GenerationRequest, Sampling
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming, Fault
from neox_serve.gateway.dispatch.routed_stream import RoutedStream
from neox_serve.wire.status import from_rpc_error
from tests.fakes.link_cluster import MODEL, LinkCluster, failure_of, generation, read_all, text_of, until
from tests.fakes.whole_path import events_of, stream_request, whole_path

TIMING = FakeTiming(ttft_s=0.001, itl_s=0.003)
LOST = ServeError(Reason.REPLICA_LOST, "the replica was lost while serving this request", {}, 1.0)


def token_ids(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for sequence in delta.sequences for token_id in sequence.token_ids]


async def read_into(deltas: list[Delta], stream: RoutedStream) -> None:
    while not (deltas and deltas[-1].end):
        deltas += await stream.next()


async def undisturbed(request: GenerationRequest) -> list[Delta]:
    engine = FakeEngine(TIMING)
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        deltas = await read_all(await dispatcher.open_generation(MODEL, request))
    await engine.close()
    return deltas


@pytest.mark.parametrize("after_tokens", [1, 2, 7, 20])
async def test_stream_of_a_killed_replica_continues_without_repeated_or_missing_tokens(after_tokens: int) -> None:
    request = generation(30)
    expected = await undisturbed(request)
    engines = [FakeEngine(TIMING), FakeEngine(TIMING)]
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replicas = {replica.replica_id: replica for replica in [await cluster.replica(engine) for engine in engines]}
        dispatcher = await cluster.dispatcher(replicas=2)
        stream = await dispatcher.open_generation(MODEL, request)
        deltas: list[Delta] = []
        while len(token_ids(deltas)) < after_tokens:
            deltas += await stream.next()
        first = stream.replica_id
        await replicas[first].stop()
        while not deltas[-1].end:
            deltas += await stream.next()
        assert (token_ids(deltas), text_of(deltas)) == (token_ids(expected), text_of(expected))
        assert sum(delta.prompt is not None for delta in deltas) == 1
        assert stream.replica_id != first
        assert len(stream.gaps_s) == 1
        assert 0 < stream.gaps_s[0] < 2
        await until(lambda: router.state.lease_count() == 0)
    for engine in engines:
        await engine.close()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(deaths=st.lists(st.integers(1, 12), min_size=1, max_size=3))
async def test_stream_that_loses_replica_after_replica_ends_as_if_undisturbed(deaths: list[int]) -> None:
    request, lost = generation(40), iter(deaths)
    expected = await undisturbed(request)

    def fault(_request: GenerationRequest) -> Fault | None:
        after = next(lost, None)
        return None if after is None else Fault(LOST, after_tokens=after)

    engines = [FakeEngine(TIMING, faults=fault) for _ in range(4)]
    async with LinkCluster() as cluster:
        await cluster.router()
        for engine in engines:
            await cluster.replica(engine)
        dispatcher = await cluster.dispatcher(replicas=4)
        stream = await dispatcher.open_generation(MODEL, request)
        deltas = await read_all(stream)
        assert (token_ids(deltas), text_of(deltas)) == (token_ids(expected), text_of(expected))
        assert len(stream.gaps_s) == len(deaths)
    for engine in engines:
        await engine.close()


async def test_stream_that_cannot_be_continued_ends_with_what_it_counted() -> None:
    def fault(_request: GenerationRequest) -> Fault | None:
        return Fault(LOST, after_tokens=3)

    engine = FakeEngine(TIMING, faults=fault)
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        await cluster.replica(FakeEngine(TIMING, faults=fault))
        dispatcher = await cluster.dispatcher(replicas=2)
        stream = await dispatcher.open_generation(MODEL, replace(generation(30), sampling=Sampling(seed=1)))
        deltas: list[Delta] = []
        caught = await failure_of(read_into(deltas, stream))
        assert caught.reason is Reason.REPLICA_LOST
        assert len(token_ids(deltas)) == 3
    await engine.close()


async def test_error_of_a_stream_says_how_many_tokens_came_before() -> None:
    async with whole_path(replicas=2) as path:
        request = stream_request(stopping={"maxTokens": 1000}, sampling={"seed": 1})
        got = 0

        async def read() -> None:
            nonlocal got
            async for event in path.stubs.inference.StreamGenerate(request):
                got += len(event.chunk.token_ids)
                if got == 5:
                    serving = next(one for one, engine in zip(path.replicas, path.engines, strict=True) if engine.stats().running_requests)
                    await serving.stop()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read()
        error = from_rpc_error(caught.value)
        assert (error.reason, error.metadata["completion_tokens"]) == (Reason.REPLICA_LOST, str(got))
        assert error.retry_after_s is not None


async def test_stream_whose_last_replica_is_gone_ends_with_unavailable() -> None:
    engine = FakeEngine(TIMING)
    async with LinkCluster() as cluster:
        await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation(1000))
        await stream.next()
        await replica.stop()
        failure = await failure_of(read_all(stream))
        assert failure.reason is Reason.REPLICA_LOST
        assert failure.retry_after_s is not None
    await engine.close()


async def test_draining_replica_hands_its_streams_on_when_its_time_is_over() -> None:
    request = generation(200)
    expected = await undisturbed(request)
    engines = [FakeEngine(TIMING), FakeEngine(TIMING)]
    async with LinkCluster() as cluster:
        await cluster.router()
        replicas = {replica.replica_id: replica for replica in [await cluster.replica(engine) for engine in engines]}
        dispatcher = await cluster.dispatcher(replicas=2)
        stream = await dispatcher.open_generation(MODEL, request)
        deltas = list(await stream.next())
        leaving = replicas[stream.replica_id]

        async def leave() -> None:
            await leaving.drain(0.1)
            await leaving.stop()

        gone = asyncio.create_task(leave())
        while not deltas[-1].end:
            deltas += await stream.next()
        assert token_ids(deltas) == token_ids(expected)
        await gone
    for engine in engines:
        await engine.close()


async def test_client_of_the_gateway_notices_nothing_and_is_charged_once() -> None:
    async with whole_path(replicas=2) as path:
        request = stream_request(stopping={"maxTokens": 30})
        uninterrupted = await events_of(path, request)
        again = stream_request(stopping={"maxTokens": 30})
        events: list[Any] = []
        async for event in path.stubs.inference.StreamGenerate(again):
            events.append(event)
            if len(events) == 5:
                serving = next(one for one, engine in zip(path.replicas, path.engines, strict=True) if engine.stats().running_requests)
                await serving.stop()
        assert "".join(event.chunk.text for event in events[:-1]) == "".join(event.chunk.text for event in uninterrupted[:-1])
        first, second = uninterrupted[-1].final, events[-1].final
        assert second.usage.prompt_tokens == first.usage.prompt_tokens
        assert second.usage.completion_tokens == first.usage.completion_tokens == 30
        assert "neox_serve_gateway_continuation_gap_seconds_count 1.0" in path.server.metrics_text()
