"""Routers that die, return elsewhere, hang or have just started, and the leases that survive them."""

import asyncio
import time

import grpc
import pytest
from grpc import aio

from neox_serve.core.cluster import Demand, ReplicaPhase
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import (
    RouterLinkServiceServicer,
    RouterLinkServiceStub,
    add_RouterLinkServiceServicer_to_server,
)
from neox_serve.link.channels import bind, internal_channel, internal_server
from neox_serve.link.streams import StreamEndedError, read
from neox_serve.replica.server import ReplicaServer
from neox_serve.wire.engine_messages import SCHEMA_VERSION
from tests.fakes.link_cluster import MODEL, LinkCluster, failure_of, generation, read_all, text_of, until
from tests.fakes.scripted_engine import ScriptedEngine


async def test_router_killed_requests_are_served_and_the_next_router_learns_all_leases() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        first = await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        before = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        await first.stop()
        await until(lambda: not dispatcher.router_connected)

        engine.step(text="without ")
        assert text_of(await before.next()) == "without "
        between = await dispatcher.open_generation(MODEL, generation(prompt_tokens=5))
        await until(lambda: len(engine.live) == 2)

        second = await cluster.router()
        assert second.address != first.address
        await until(lambda: dispatcher.router_connected and replica.router_connected)
        assert {lease.tokens for lease in second.state.leases("g")} == {1003, 1005}
        after = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: len(engine.live) == 3)
        assert second.state.outstanding(replica.replica_id).requests == 3

        engine.step(text="end", end=True)
        texts = [text_of(await read_all(stream)) for stream in (before, between, after)]
        assert texts == ["end", "end", "end"]
        await until(lambda: second.state.lease_count() == 0)
        assert (dispatcher.requests_in_flight, replica.requests_in_flight) == (0, 0)


async def test_router_restarted_repeatedly_loses_no_request() -> None:
    """A request arrives every few milliseconds while routers are replaced; all are served."""
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        router = await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        served, restarts = 0, 0
        restart_s = time.monotonic()
        while restarts < 4:
            if time.monotonic() > restart_s:
                await router.stop()
                router = await cluster.router()
                restarts += 1
                restart_s = time.monotonic() + 0.7
            stream = await dispatcher.open_generation(MODEL, generation())
            await until(lambda: engine.live)
            engine.step(end=True)
            await read_all(stream)
            served += 1
        assert served > 20
        await until(lambda: dispatcher.router_connected)
        await until(lambda: router.state.lease_count() == 0)
        assert dispatcher.requests_in_flight == 0


async def test_gateway_without_any_router_refuses_with_no_ready_replica() -> None:
    async with LinkCluster() as cluster:
        dispatcher = await cluster.dispatcher(replicas=0)
        with pytest.raises(ServeError) as caught:
            await dispatcher.open_generation(MODEL, generation())
        assert caught.value.reason is Reason.NO_READY_REPLICA
        assert not dispatcher.router_connected
        view = await dispatcher.cluster_view(1)
        assert (view.replicas, view.from_router) == ((), False)


async def test_local_routing_balances_own_load_and_skips_broken_links() -> None:
    engines = [ScriptedEngine(), ScriptedEngine(), ScriptedEngine()]
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replicas = [await cluster.replica(engine) for engine in engines]
        dispatcher = await cluster.dispatcher(replicas=3)
        await router.stop()
        await replicas[0].stop()
        await until(lambda: dispatcher.ready_replicas(Pool.GENERATION) == 2)
        streams = [await dispatcher.open_generation(MODEL, generation()) for _ in range(10)]
        await until(lambda: sum(len(engine.live) for engine in engines) == 10)
        assert [len(engine.live) for engine in engines] == [0, 5, 5]
        view = await dispatcher.cluster_view(1)
        assert (view.from_router, sum(each.outstanding.requests for each in view.replicas)) == (False, 10)
        for stream in streams:
            stream.cancel()


async def test_router_started_last_connects_replica_and_gateway() -> None:
    async with LinkCluster() as cluster:
        replica = await cluster.replica(ScriptedEngine())
        dispatcher = await cluster.dispatcher(replicas=0)
        await asyncio.sleep(0.2)
        await cluster.router()
        await dispatcher.wait_ready([Pool.GENERATION], 5)
        assert replica.router_connected


async def test_request_to_a_new_router_waits_for_the_first_replica() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router(grace_s=5.0)
        dispatcher = await cluster.dispatcher(replicas=0)
        await until(lambda: dispatcher.router_connected)
        opening = asyncio.ensure_future(dispatcher.open_generation(MODEL, generation()))
        await asyncio.sleep(0.1)
        assert not opening.done()
        await cluster.replica(engine)
        stream = await asyncio.wait_for(opening, 20)
        await until(lambda: engine.live)
        stream.cancel()


class HungRouter(RouterLinkServiceServicer):
    """Lists one replica and then never replies."""

    def __init__(self, replica: pb.Replica) -> None:
        self.replica = replica
        self.leases: dict[str, set[int]] = {"requested": set(), "adopted": set(), "settled": set()}

    async def ConnectGateway(  # type: ignore[override]  # noqa: N802
        self, request_iterator: object, context: aio.ServicerContext[pb.ConnectGatewayRequest, pb.ConnectGatewayResponse]
    ) -> None:
        await context.write(pb.ConnectGatewayResponse(replicas=pb.ReplicaSet(replicas=[self.replica])))
        while True:
            try:
                request = await read(context, pb.ConnectGatewayRequest)
            except StreamEndedError:
                return
            self.leases["requested"] |= {request.admit.lease_id} - {0}
            self.leases["adopted"] |= {lease.lease_id for lease in request.adopted.leases}
            self.leases["settled"] |= {one.lease_id for one in request.settlements.settlements}

    async def ConnectReplica(  # type: ignore[override]  # noqa: N802
        self, request_iterator: object, context: aio.ServicerContext[pb.ConnectReplicaRequest, pb.ConnectReplicaResponse]
    ) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "hung")


async def hang(cluster: LinkCluster, replica: ReplicaServer) -> tuple[HungRouter, aio.Server]:
    """Starts a router that lists one replica and then never replies; peers look for this one from now on."""
    listed = pb.Replica(
        replica_id=replica.replica_id,
        pool=pb.POOL_GENERATION,
        model=MODEL,
        address=replica.address,
        phase=pb.REPLICA_PHASE_READY,
        max_requests=8,
    )
    hung, server = HungRouter(listed), internal_server()
    add_RouterLinkServiceServicer_to_server(hung, server)
    cluster.router_address = bind(server, "127.0.0.1", 0)
    await server.start()
    return hung, server


async def test_router_that_hangs_delays_a_request_by_the_admission_timeout_only() -> None:
    async with LinkCluster() as cluster:
        hung, server = await hang(cluster, await cluster.replica(ScriptedEngine()))
        dispatcher = await cluster.dispatcher(admission_timeout_s=0.2)
        stream = await dispatcher.open_generation(MODEL, generation())
        assert 0.15 < stream.admission_s < 2
        stream.cancel()
        await until(lambda: len(hung.leases["settled"]) == 2)
        assert hung.leases == {"requested": {1}, "adopted": {2}, "settled": {1, 2}}
        view = await dispatcher.cluster_view(0.05)
        assert not view.from_router
        await server.stop(None)


async def test_router_lost_while_estimate_and_view_wait_ends_both_at_once() -> None:
    async with LinkCluster() as cluster:
        _, server = await hang(cluster, await cluster.replica(ScriptedEngine()))
        dispatcher = await cluster.dispatcher()
        estimating = asyncio.ensure_future(dispatcher.estimate(Demand(Pool.GENERATION, MODEL, 3, 10), 60.0))
        viewing = asyncio.ensure_future(dispatcher.cluster_view(60.0))
        await asyncio.sleep(0.05)
        assert not estimating.done()
        assert not viewing.done()
        await server.stop(None)
        assert (await failure_of(estimating)).reason is Reason.NO_READY_REPLICA
        assert not (await asyncio.wait_for(viewing, 20)).from_router


async def test_resolver_that_raises_is_called_again() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        resolved = 0

        async def resolve() -> str:
            nonlocal resolved
            resolved += 1
            if resolved == 1:
                raise LookupError("no such actor")
            return router.address

        cluster.resolve = resolve  # type: ignore[method-assign]
        dispatcher = await cluster.dispatcher(replicas=0)
        await until(lambda: dispatcher.router_connected)
        assert resolved == 2


async def test_view_shows_replicas_gateways_and_load() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        await cluster.router()
        replica = await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        stream = await dispatcher.open_generation(MODEL, generation())
        await until(lambda: engine.live)
        await asyncio.sleep(0.15)  # a load report
        view = await dispatcher.cluster_view(1)
        (seen,) = view.replicas
        assert (seen.replica.replica_id, seen.replica.phase) == (replica.replica_id, ReplicaPhase.READY)
        assert (seen.load.running_requests, seen.outstanding.requests, seen.outstanding.tokens) == (1, 1, 1003)
        assert [(each.gateway_id, each.requests_in_flight) for each in view.gateways] == [("g", 1)]
        assert replica.load()["requests_in_flight"] == 1.0
        stream.cancel()


async def test_lost_replica_is_forgotten_after_the_grace_period() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(ScriptedEngine())
        await cluster.dispatcher()
        await replica.stop()
        assert router.state.replicas()
        await until(lambda: not router.state.replicas())


async def test_peer_with_another_schema_version_is_refused() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        async with internal_channel(router.address) as channel:
            call = RouterLinkServiceStub(channel).ConnectGateway()
            await call.write(pb.ConnectGatewayRequest(hello=pb.GatewayHello(gateway_id="g", schema_version=SCHEMA_VERSION + 1)))
            with pytest.raises(StreamEndedError, match="FAILED_PRECONDITION"):
                await read(call, pb.ConnectGatewayResponse)
        assert router.state.view(0.0).gateways == ()
