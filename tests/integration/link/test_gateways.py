"""Gateways that vanish, read slowly or not at all, or use another schema version."""

import asyncio

import grpc
import pytest

from neox_serve.core.errors import Reason
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.internal.v1 import engine_link_pb2 as pb
from neox_serve.internal.v1.engine_link_pb2_grpc import EngineLinkServiceStub
from neox_serve.link.channels import internal_channel
from neox_serve.link.streams import StreamEndedError, read
from neox_serve.replica.link_session import EngineLinkSession
from neox_serve.settings.cluster import TracingSettings
from neox_serve.telemetry.tracing import Tracing
from neox_serve.wire import engine_messages as wire
from tests.fakes.link_cluster import MODEL, LinkCluster, failure_of, generation, read_all, until
from tests.fakes.scripted_engine import ScriptedEngine


async def test_lost_gateway_has_its_requests_aborted_and_its_leases_removed() -> None:
    engine = FakeEngine(FakeTiming(ttft_s=0.001, itl_s=0.005))
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(engine)
        dying, other = await cluster.dispatcher("dying"), await cluster.dispatcher("other")
        for _ in range(10):
            await dying.open_generation(MODEL, generation(100_000))
        stream = await other.open_generation(MODEL, generation(100_000))
        await until(lambda: engine.stats().running_requests == 11)
        await dying.close()
        await until(lambda: engine.stats().running_requests == 1)
        assert replica.requests_in_flight == 1
        await until(lambda: router.state.lease_count() == 1)
        stream.cancel()
        await until(lambda: router.state.lease_count() == 0)
    await engine.close()


async def test_slow_reader_slows_down_only_itself() -> None:
    engine = FakeEngine(FakeTiming(ttft_s=0.001, itl_s=0.002))
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        slow = await dispatcher.open_generation(MODEL, generation(300))
        healthy = [await dispatcher.open_generation(MODEL, generation(300)) for _ in range(8)]
        done = await asyncio.wait_for(asyncio.gather(*(read_all(stream) for stream in healthy)), 20)
        assert all(deltas[-1].end for deltas in done)
        kept = await slow.next()
        assert sum(len(sequence.token_ids) for delta in kept for sequence in delta.sequences) <= 300
        if not kept[-1].end:
            await read_all(slow)
        assert dispatcher.requests_in_flight == 0
    await engine.close()


async def test_gateway_that_stops_reading_loses_its_link_and_others_are_unaffected() -> None:
    """The backlog of frames is bounded; beyond the bound the session ends its stream."""
    engine = ScriptedEngine()

    class Stuck:
        """A stream whose peer does not read."""

        async def write(self, _message: pb.ConnectResponse) -> None:
            await asyncio.get_running_loop().create_future()

    class Submits:
        """A stream with one request."""

        def __init__(self) -> None:
            self.sent = False

        async def read(self) -> pb.ConnectRequest:
            if self.sent:
                await asyncio.get_running_loop().create_future()
            self.sent = True
            return wire.commands([wire.generation_to_proto(1, generation())], [], [])

    silent = Tracing(TracingSettings(), "engine")
    session = EngineLinkSession(number=1, engine=engine, admit=lambda: None, on_ended=lambda: None, tracing=silent, max_backlog_deltas=100)
    parts = [asyncio.ensure_future(session.handle_commands(Submits())), asyncio.ensure_future(session.write_to(Stuck()))]
    ended = asyncio.ensure_future(session.ended())
    await until(lambda: engine.live)
    for _ in range(110):
        engine.step()
        await asyncio.sleep(0)
    with pytest.raises(StreamEndedError, match="unread"):
        await asyncio.wait_for(ended, 20)
    for part in parts:
        part.cancel()
    await asyncio.gather(*parts, return_exceptions=True)
    await session.close()
    assert engine.live == {}


async def test_gateway_that_never_reads_is_disconnected_and_another_is_unaffected() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        async with internal_channel(replica.address) as channel:
            call = EngineLinkServiceStub(channel).Connect()
            await call.write(wire.hello("silent"))
            submissions = [wire.generation_to_proto(key, generation()) for key in range(200)]
            await call.write(wire.commands(submissions, [], []))
            await until(lambda: len(engine.live) == 200)
            stream = await dispatcher.open_generation(MODEL, generation())
            await until(lambda: len(engine.live) == 201)
            read_tokens = 0
            while len(engine.live) > 1:
                engine.step(text="x" * 100)
                read_tokens += len(await asyncio.wait_for(stream.next(), 20))
                assert read_tokens < 20_000, "the silent gateway was never cut"
            assert replica.requests_in_flight == 1
            call.cancel()
        engine.step(end=True)
        assert (await read_all(stream))[-1].end


async def test_gateway_with_another_schema_version_is_refused() -> None:
    async with LinkCluster() as cluster:
        replica = await cluster.replica(ScriptedEngine())
        async with internal_channel(replica.address) as channel:
            call = EngineLinkServiceStub(channel).Connect()
            await call.write(pb.ConnectRequest(hello=pb.Hello(gateway_id="g", schema_version=wire.SCHEMA_VERSION + 1)))
            with pytest.raises(StreamEndedError, match="FAILED_PRECONDITION"):
                await read(call, pb.ConnectResponse)
            assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_closed_dispatcher_fails_open_requests() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher: LinkDispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        engine.step()
        await stream.next()
        await dispatcher.close()
        assert (await failure_of(stream.next())).reason is Reason.REPLICA_LOST
