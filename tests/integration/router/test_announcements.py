"""When gateways learn of replicas."""

from neox_serve.core.cluster import Demand, Replica
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import internal_channel
from neox_serve.link.streams import read, write
from neox_serve.wire import replica_messages
from neox_serve.wire import router_messages as wire
from tests.fakes.link_cluster import MODEL, LinkCluster


async def test_new_replica_is_listed_before_the_first_grant_on_it() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        async with internal_channel(router.address) as channel:
            gateway = RouterLinkServiceStub(channel).ConnectGateway()
            await write(gateway, wire.gateway_hello("g", ()))
            assert not (await read(gateway, pb.ConnectGatewayResponse)).replicas.replicas
            for name in ("r", "s"):
                link = RouterLinkServiceStub(channel).ConnectReplica()
                await write(link, replica_messages.replica_hello(Replica(name, Pool.GENERATION, MODEL, f"{name}:1", 1)))
                await read(link, pb.ConnectReplicaResponse)
                await write(gateway, wire.admit(ord(name), Demand(Pool.GENERATION, MODEL, 1, 1)))
                named = (await read(gateway, pb.ConnectGatewayResponse)).replicas.replicas
                granted = (await read(gateway, pb.ConnectGatewayResponse)).admit.replica_id
                assert (granted, named[-1].replica_id) == (name, name)
