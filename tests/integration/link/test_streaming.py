"""Requests over the link: the output is the engine's, in one frame per step."""

import asyncio
from collections.abc import Sequence

import pytest

from neox_serve.core.errors import FieldViolation, Reason, ServeError
from neox_serve.core.types import Delta, EmbeddingRequest, Pool, Pooling
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.internal.v1 import engine_link_pb2 as pb
from neox_serve.internal.v1.engine_link_pb2_grpc import EngineLinkServiceStub
from neox_serve.link.channels import internal_channel
from neox_serve.link.streams import read
from neox_serve.wire import engine_messages as wire
from tests.fakes.link_cluster import MODEL, LinkCluster, generation, read_all, text_of, until
from tests.fakes.scripted_engine import ScriptedEngine

FAST = FakeTiming(ttft_s=0.001, itl_s=0.001)


def merged(deltas: Sequence[Delta]) -> tuple[object, ...]:
    """Returns the content of the deltas, independent of their boundaries and keys."""
    sequences = [sequence for delta in deltas for sequence in delta.sequences]
    ids = tuple(token for sequence in sequences for token in sequence.token_ids)
    prompts = [delta.prompt for delta in deltas if delta.prompt]
    return (text_of(deltas), ids, prompts, [sequence.finish for sequence in sequences if sequence.finish], deltas[-1].end)


async def test_stream_equals_the_engines_own_output() -> None:
    engine = FakeEngine(FAST)
    request = generation(50)
    direct: list[Delta] = []
    await engine.generate("direct", request, direct.extend)
    await until(lambda: direct and direct[-1].end)
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        linked = await read_all(await dispatcher.open_generation(MODEL, request))
    await engine.close()
    assert merged(linked) == merged(direct)


async def test_one_step_is_one_frame_for_all_requests_of_a_gateway() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        replica = await cluster.replica(engine)
        async with internal_channel(replica.address) as channel:
            call = EngineLinkServiceStub(channel).Connect()
            await call.write(wire.hello("g"))
            welcome = await read(call, pb.ConnectResponse)
            assert welcome.welcome.replica_id == replica.replica_id
            await call.write(wire.commands([wire.generation_to_proto(key, generation()) for key in (1, 2, 3)], [], []))
            await until(lambda: len(engine.live) == 3)
            for step in range(5):
                engine.step(text=f"step {step}", end=step == 4)
            frames = [(await read(call, pb.ConnectResponse)).step for _ in range(engine.steps)]
            assert [[delta.key for delta in frame.deltas] for frame in frames] == [[1, 2, 3]] * 5
            assert [frame.deltas[0].sequences[0].text for frame in frames] == [f"step {step}" for step in range(5)]
            call.cancel()


async def test_exception_of_one_reader_fails_no_other_request_of_the_link() -> None:
    def broken(_delta: Delta) -> bool:
        raise LookupError("a bug")

    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        faulty, healthy = [await dispatcher.open_generation(MODEL, generation()) for _ in range(2)]
        await until(lambda: len(engine.live) == 2)
        engine.step(text="a")
        await faulty.next()
        failing = asyncio.ensure_future(faulty.next(broken))
        await asyncio.sleep(0)
        engine.step(text="b")
        with pytest.raises(LookupError, match="a bug"):
            await failing
        faulty.cancel()
        await until(lambda: len(engine.live) == 1)
        engine.step(text="c", end=True)
        assert text_of(await read_all(healthy)) == "abc"
    await engine.close()


async def test_next_returns_all_deltas_since_the_last_call() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        for text in "abc":
            engine.step(text=text)
        await asyncio.sleep(0.1)
        assert text_of(await stream.next()) == "abc"
        engine.step(text="d", end=True)
        last = await stream.next()
        assert (text_of(last), last[-1].end) == ("d", True)
        with pytest.raises(RuntimeError, match="past its end"):
            await stream.next()
        assert stream.admission_s > 0
        assert dispatcher.requests_in_flight == 0


async def test_embedding_returns_the_vector_of_the_engine() -> None:
    engine = FakeEngine(FAST)
    request = EmbeddingRequest("e", (1, 2, 3), Pooling.MEAN)
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine, Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher()
        results = await asyncio.gather(*(dispatcher.embed(MODEL, request) for _ in range(20)))
        assert {result.values for result in results} == {(await engine.embed("direct", request)).values}
        assert dispatcher.requests_in_flight == 0
    await engine.close()


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (
            ServeError(Reason.INVALID_ARGUMENT, "bad pattern", violations=(FieldViolation("parameters.structured_output.regex", "bad"),)),
            Reason.INVALID_ARGUMENT,
        ),
        (ServeError(Reason.UNKNOWN_ADAPTER, "no such adapter", {"adapter": "a"}), Reason.UNKNOWN_ADAPTER),
        (ZeroDivisionError("a bug in the engine"), Reason.ENGINE_FAILED),
    ],
    ids=["parameter", "adapter", "bug"],
)
async def test_request_refused_by_the_engine_fails_with_all_details_and_no_other_does(raised: Exception, reason: Reason) -> None:
    engine = ScriptedEngine()
    engine.refusal = raised
    async with LinkCluster() as cluster:
        await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        with pytest.raises(ServeError) as caught:
            await read_all(stream)
        assert caught.value == raised if isinstance(raised, ServeError) else caught.value.reason is reason
        engine.refusal = None
        again = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        engine.step(end=True)
        assert (await read_all(again))[-1].end
        assert (dispatcher.requests_in_flight, replica.requests_in_flight) == (0, 0)


async def test_unknown_model_is_refused_by_the_router() -> None:
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(ScriptedEngine())
        dispatcher = await cluster.dispatcher()
        with pytest.raises(ServeError) as caught:
            await dispatcher.open_generation("other", generation())
        assert caught.value.reason is Reason.UNKNOWN_MODEL
        assert dispatcher.requests_in_flight == 0


async def test_full_pool_refuses_with_a_retry_delay_until_a_request_ends() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router(max_queued_requests=0)
        await cluster.replica(engine, max_requests=2)
        dispatcher = await cluster.dispatcher()
        streams = [await dispatcher.open_generation(MODEL, generation()) for _ in range(2)]
        with pytest.raises(ServeError) as caught:
            await dispatcher.open_generation(MODEL, generation())
        assert (caught.value.reason, (caught.value.retry_after_s or 0) > 0) == (Reason.OVERLOADED, True)
        streams[0].cancel()
        third = await dispatcher.open_generation(MODEL, generation())
        for stream in (streams[1], third):
            stream.cancel()
        assert dispatcher.requests_in_flight == 0
