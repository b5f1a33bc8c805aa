"""Cancelled requests, and replicas that are lost, drain or are at the wrong address."""

import asyncio
import time
from dataclasses import replace

import pytest

from neox_serve.core.cluster import ReplicaPhase
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import EmbeddingRequest, Pool, Pooling, Sampling
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from tests.fakes.link_cluster import MODEL, LinkCluster, failure_of, generation, read_all, text_of, until
from tests.fakes.scripted_engine import ScriptedEngine

# Cancelling


async def test_cancel_mid_stream_aborts_only_that_request_in_the_engine() -> None:
    engine = FakeEngine(FakeTiming(ttft_s=0.001, itl_s=0.005))
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        background = [await dispatcher.open_generation(MODEL, generation(100_000)) for _ in range(16)]
        for _ in range(100):
            stream = await dispatcher.open_generation(MODEL, generation(100_000))
            await stream.next()
            assert engine.stats().running_requests == 17
            stream.cancel()
            await until(lambda: engine.stats().running_requests == 16)
            assert (await failure_of(stream.next())).reason is Reason.CANCELLED
        for stream in background:
            stream.cancel()
            stream.cancel()
        await until(lambda: router.state.lease_count() == 0 and replica.requests_in_flight == 0)
        assert dispatcher.requests_in_flight == 0
    await engine.close()


async def test_waiting_reader_gets_cancelled_when_another_task_cancels() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        reading = asyncio.ensure_future(stream.next())
        await asyncio.sleep(0.01)
        stream.cancel()
        assert (await failure_of(reading)).reason is Reason.CANCELLED


async def test_call_cancelled_during_admission_leaves_no_lease() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router(grace_s=5.0)  # a young router without replicas holds requests
        dispatcher = await cluster.dispatcher(replicas=0)
        await until(lambda: dispatcher.router_connected)
        opening = asyncio.ensure_future(dispatcher.open_generation(MODEL, generation()))
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        engine = ScriptedEngine()
        await cluster.replica(engine)
        await until(lambda: dispatcher.ready_replicas(Pool.GENERATION))
        await asyncio.sleep(0.1)
        assert (router.state.lease_count(), engine.live, dispatcher.requests_in_flight) == (0, {}, 0)


async def test_cancel_while_the_engine_accepts_the_request_aborts_it() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: replica.requests_in_flight == 1)
        stream.cancel()
        await until(lambda: engine.aborted)
        engine.gate.set()
        await until(lambda: router.state.lease_count() == 0)
        assert (engine.live, replica.requests_in_flight, dispatcher.requests_in_flight) == ({}, 0, 0)


async def test_cancelled_embedding_is_aborted() -> None:
    engine = FakeEngine(FakeTiming(ttft_s=60.0))
    async with LinkCluster() as cluster:
        router = await cluster.router()
        await cluster.replica(engine, Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher()
        embedding = asyncio.ensure_future(dispatcher.embed(MODEL, EmbeddingRequest("e", (1,), Pooling.LAST)))
        await until(lambda: engine.stats().running_requests == 1)
        embedding.cancel()
        await until(lambda: engine.stats().running_requests == 0)
        await until(lambda: router.state.lease_count() == 0)
        assert dispatcher.requests_in_flight == 0
    await engine.close()


# Replicas


async def test_replica_lost_before_the_first_token_moves_its_requests() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replicas = [await cluster.replica(engine) for engine in engines]
        dispatcher = await cluster.dispatcher(replicas=2)
        streams = [await dispatcher.open_generation(MODEL, generation()) for _ in range(8)]
        await until(lambda: sum(len(engine.live) for engine in engines) == 8)
        assert all(engine.live for engine in engines)
        reading = [asyncio.ensure_future(read_all(stream)) for stream in streams]
        await replicas[0].stop()
        await until(lambda: len(engines[1].live) == 8)
        engines[1].step(text="moved", end=True)
        assert [text_of(await each) for each in reading] == ["moved"] * 8
        assert {stream.replica_id for stream in streams} == {replicas[1].replica_id}
        await until(lambda: router.state.lease_count() == 0)
        assert dispatcher.requests_in_flight == 0


async def test_replica_lost_after_the_first_token_fails_requests_that_cannot_be_continued() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replicas = {engine: await cluster.replica(engine) for engine in engines}
        dispatcher = await cluster.dispatcher(replicas=2)
        stream = await dispatcher.open_generation(MODEL, replace(generation(), sampling=Sampling(seed=1)))
        await until(lambda: any(engine.live for engine in engines))
        (engine,) = [engine for engine in engines if engine.live]
        engine.step(text="first")
        assert text_of(await stream.next()) == "first"
        await replicas[engine].stop()
        error = await failure_of(stream.next())
        assert (error.reason, error.retry_after_s is not None) == (Reason.REPLICA_LOST, True)
        assert not any(engine.live for engine in engines)
        await until(lambda: router.state.lease_count() == 0)


async def test_request_is_moved_only_once() -> None:
    engines = [ScriptedEngine(), ScriptedEngine(), ScriptedEngine()]
    async with LinkCluster() as cluster:
        await cluster.router()
        for engine in engines:
            await cluster.replica(engine)
        dispatcher = await cluster.dispatcher(replicas=3)
        stream = await dispatcher.open_generation(MODEL, generation())
        reading = asyncio.ensure_future(stream.next())
        for _ in range(2):
            await until(lambda: any(engine.live for engine in engines))
            (holder,) = [engine for engine in engines if engine.live]
            holder.step(failure=ServeError(Reason.REPLICA_LOST, "the engine's worker was killed"))
        assert (await failure_of(reading)).reason is Reason.REPLICA_LOST
        assert (sum(engine.steps for engine in engines), dispatcher.requests_in_flight) == (2, 0)


async def test_embedding_is_moved_when_its_replica_is_lost() -> None:
    dying, other = FakeEngine(FakeTiming(ttft_s=0.3)), FakeEngine(FakeTiming(ttft_s=0.001))
    async with LinkCluster() as cluster:
        await cluster.router()
        replica = await cluster.replica(dying, Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher()
        embedding = asyncio.ensure_future(dispatcher.embed(MODEL, EmbeddingRequest("e", (1,), Pooling.LAST)))
        await until(lambda: dying.stats().running_requests == 1)
        await cluster.replica(other, Pool.EMBEDDING)
        await until(lambda: dispatcher.ready_replicas(Pool.EMBEDDING) == 2)
        await replica.stop()
        assert (await asyncio.wait_for(embedding, 20)).values
    await dying.close()
    await other.close()


async def test_loss_of_the_only_replica_refuses_requests_until_another_registers() -> None:
    async with LinkCluster() as cluster:
        await cluster.router()
        first = await cluster.replica(ScriptedEngine())
        dispatcher = await cluster.dispatcher()
        await first.stop()
        with pytest.raises(ServeError) as caught:
            await dispatcher.open_generation(MODEL, generation())
        assert (caught.value.reason, caught.value.retry_after_s is not None) == (Reason.NO_READY_REPLICA, True)
        engine = ScriptedEngine()
        await cluster.replica(engine)
        await dispatcher.wait_ready([Pool.GENERATION], 20)
        stream = await dispatcher.open_generation(MODEL, generation())
        stream.cancel()


async def test_wait_ready_without_a_replica_names_the_pool() -> None:
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(ScriptedEngine())
        dispatcher = await cluster.dispatcher()
        with pytest.raises(ServeError, match="embedding") as caught:
            await dispatcher.wait_ready(Pool, 0.05)
        assert caught.value.reason is Reason.NO_READY_REPLICA


async def test_failed_engine_makes_its_replica_unhealthy_and_others_serve() -> None:
    sick, well = ScriptedEngine(), ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(sick)
        await cluster.replica(well)
        dispatcher = await cluster.dispatcher(replicas=2)
        sick.healthy = False
        await until(lambda: dispatcher.ready_replicas(Pool.GENERATION) == 1)
        streams = [await dispatcher.open_generation(MODEL, generation()) for _ in range(4)]
        await until(lambda: len(well.live) == 4)
        sick.healthy = True
        await until(lambda: dispatcher.ready_replicas(Pool.GENERATION) == 2)
        for stream in streams:
            stream.cancel()


async def test_draining_replica_finishes_its_requests_and_gets_no_new_ones() -> None:
    leaving, staying = ScriptedEngine(), ScriptedEngine()
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(leaving)
        dispatcher = await cluster.dispatcher()
        old = [await dispatcher.open_generation(MODEL, generation()) for _ in range(3)]
        await until(lambda: len(leaving.live) == 3)
        await cluster.replica(staying)
        await until(lambda: dispatcher.ready_replicas(Pool.GENERATION) == 2)
        draining = asyncio.ensure_future(replica.drain(10))
        new = [await dispatcher.open_generation(MODEL, generation()) for _ in range(8)]
        reading = [asyncio.ensure_future(read_all(stream)) for stream in new]
        await until(lambda: len(staying.live) == 8)
        assert len(leaving.live) == 3
        assert not draining.done()
        leaving.step(text="last", end=True)
        staying.step(text="new", end=True)
        assert [text_of(await read_all(stream)) for stream in old] == ["last"] * 3
        assert [text_of(await each) for each in reading] == ["new"] * 8
        await asyncio.wait_for(draining, 20)
        await until(lambda: router.state.lease_count() == 0)


async def test_drain_ends_at_its_timeout() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        started_s = time.monotonic()
        await replica.drain(0.1)
        assert 0.05 < time.monotonic() - started_s < 2
        assert replica.requests_in_flight == 1
        stream.cancel()


async def test_draining_replica_reports_its_phase_to_the_next_router() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        first = await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        draining = asyncio.ensure_future(replica.drain(10))
        await until(lambda: first.state.replicas()[0].phase is ReplicaPhase.DRAINING)
        second = await cluster.router()
        await first.stop()
        await until(second.state.replicas)
        assert second.state.replicas()[0].phase is ReplicaPhase.DRAINING
        stream.cancel()
        await asyncio.wait_for(draining, 20)


async def test_address_taken_over_by_another_replica_is_not_used() -> None:
    """The router lists a replica whose address belongs to another one; the gateway must not send anything there."""
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        router = await cluster.router()
        real = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        await until(router.state.replicas)
        (listed,) = router.state.replicas()
        stale = type(listed)("stale", listed.pool, listed.model, listed.address.replace("127.0.0.1", "localhost"), 8)
        router.state.connect_replica(stale, 10**6, time.monotonic())
        await asyncio.sleep(0.4)  # the router lists it and the gateway tries the address
        assert dispatcher.ready_replicas(Pool.GENERATION) == 1
        streams = [await dispatcher.open_generation(MODEL, generation()) for _ in range(4)]
        assert {stream.replica_id for stream in streams} == {real.replica_id}
        for stream in streams:
            stream.cancel()
