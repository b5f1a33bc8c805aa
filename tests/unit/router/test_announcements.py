"""When gateways are sent the list of replicas."""

import asyncio
from random import Random

from neox_serve.core.cluster import Replica
from neox_serve.core.scheduling.cluster_state import ClusterState
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.router.announcements import ReplicaAnnouncer


class World:
    """A router's state, and the ids in each list that was broadcast."""

    def __init__(self) -> None:
        self.state = ClusterState(grace_s=1.0, started_s=0.0, rng=Random(0))
        self.lists: list[list[str]] = []
        self.announcer = ReplicaAnnouncer(self.state, [], self.broadcast)

    def broadcast(self, message: pb.ConnectGatewayResponse) -> None:
        self.lists.append([replica.replica_id for replica in message.replicas.replicas])

    def register(self, name: str) -> None:
        self.state.connect_replica(Replica(name, Pool.GENERATION, "m", f"{name}:1", 1), 1, 0.0)


async def test_changes_within_the_delay_are_sent_as_one_list() -> None:
    world = World()
    for name in "abc":
        world.register(name)
        world.announcer.schedule()
    assert world.lists == []
    await asyncio.sleep(0.1)
    assert world.lists == [["a", "b", "c"]]


async def test_grant_on_an_unannounced_replica_sends_the_list_first_and_only_once() -> None:
    world = World()
    world.register("a")
    world.announcer.schedule()
    for _ in range(2):
        world.announcer.before_grant("a")
    assert world.lists == [["a"]]
    await asyncio.sleep(0.1)
    assert world.lists == [["a"]]


async def test_unchanged_list_is_not_sent_again() -> None:
    world = World()
    world.register("a")
    for _ in range(2):
        world.announcer.send()
    assert world.lists == [["a"]]


async def test_stopped_announcer_sends_nothing() -> None:
    world = World()
    world.register("a")
    world.announcer.schedule()
    world.announcer.stop()
    await asyncio.sleep(0.1)
    assert world.lists == []
