"""Placement with a router that grants, queues, refuses, is lost or does not reply."""

import asyncio
from random import Random
from typing import cast

import pytest

from neox_serve.core.cluster import Demand, Lease, Replica, Settled
from neox_serve.core.errors import OwnedElsewhere, Reason, ServeError
from neox_serve.core.generation.request_life import replica_lost
from neox_serve.core.scheduling.cluster_state import Grant
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.engine_link import EngineLink
from neox_serve.gateway.dispatch.engine_links import EngineLinks
from neox_serve.gateway.dispatch.placement import Placement, Placer
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

DEMAND = Demand(Pool.GENERATION, "m", 10, 20)


class World:
    """The router and the links around one Placer. `down`: replicas whose link does not come up."""

    def __init__(self, *names: str, connected: bool = True, timeout_s: float = 60.0) -> None:
        self.connected = connected
        self.listed = [Replica(name, Pool.GENERATION, "m", f"{name}:1", 1) for name in names]
        self.down: set[str] = set()
        self.requested: list[int] = []
        self.adopted: list[int] = []
        self.settled: list[int] = []
        self.placer = Placer(
            gateway_id="g",
            links=cast("EngineLinks", self),
            send=self.send,
            connected=lambda: self.connected,
            rng=Random(0),
            timeout_s=timeout_s,
            link_timeout_s=1.0,
        )

    # The links

    def replicas(self) -> list[tuple[Replica, bool]]:
        return [(replica, replica.replica_id not in self.down) for replica in self.listed]

    def block_tokens(self, _pool: Pool) -> int:
        return 16

    async def up(self, replica_id: str, _timeout_s: float) -> EngineLink:
        await asyncio.sleep(0)
        if replica_id in self.down:
            raise replica_lost(replica_id)
        return cast("EngineLink", self)

    # The router

    def send(self, message: pb.ConnectGatewayRequest) -> None:
        if self.connected:
            self.requested += [message.admit.lease_id] if message.HasField("admit") else []
            self.adopted += [lease.lease_id for lease in message.adopted.leases]
            self.settled += [one.lease_id for one in message.settlements.settlements]

    def reply(self, message: pb.ConnectGatewayResponse) -> None:
        self.placer.on_reply(message.admit)

    def lose(self) -> None:
        self.connected = False
        self.placer.on_router_lost()

    async def begin(self) -> asyncio.Task[Placement]:
        call = asyncio.ensure_future(self.placer.place("r", DEMAND))
        await asyncio.sleep(0)
        return call


async def test_granted_lease_is_in_the_hello_at_once_and_settled_once() -> None:
    world = World("a")
    call = await world.begin()
    world.reply(wire.grant(1, Grant("a", 4, "why")))
    assert world.placer.leases() == (Lease(1, "a", 30, 4),)
    placement = await call
    assert (placement.lease.cached_tokens, placement.predicted, placement.explanation) == (4, True, "why")
    for _ in range(2):
        world.placer.settle(Settled(1))
    await asyncio.sleep(0)
    assert (world.settled, world.placer.leases_in_flight) == ([1], 0)


async def test_refusal_and_owner_are_raised_and_leave_no_lease() -> None:
    world = World("a")
    for number, message, expected in (
        (1, wire.refuse(1, ServeError(Reason.UNKNOWN_MODEL, "no")), ServeError),
        (2, wire.owned_elsewhere(2, "h:1"), OwnedElsewhere),
    ):
        call = await world.begin()
        assert world.requested[-1] == number
        world.reply(message)
        with pytest.raises(expected):
            await call
    assert (world.placer.leases_in_flight, world.settled) == (0, [])


async def test_router_that_does_not_reply_is_replaced_by_local_routing() -> None:
    world = World("a", timeout_s=0.01)
    placement = await world.placer.place("r", DEMAND)
    await asyncio.sleep(0)
    assert (placement.lease.replica_id, placement.predicted) == ("a", False)
    assert (world.requested, world.adopted, world.settled) == ([1], [2], [1])


async def test_request_without_a_router_is_placed_locally() -> None:
    world = World("a", connected=False)
    assert (await world.placer.place("r", DEMAND)).lease.replica_id == "a"
    with pytest.raises(ServeError) as caught:
        await world.placer.place("r", DEMAND)
    assert caught.value.reason is Reason.OVERLOADED


async def test_queued_request_whose_router_is_lost_asks_the_next_one_if_no_replica_has_room() -> None:
    world = World("a", connected=False)
    await world.placer.place("other", DEMAND)
    world.connected = True
    call = await world.begin()
    world.reply(wire.queued(world.requested[-1]))
    world.lose()
    await asyncio.sleep(0.01)
    assert not call.done()
    world.connected = True
    world.placer.on_router_connected()
    await asyncio.sleep(0.01)
    world.reply(wire.grant(world.requested[-1], Grant("a", 0)))
    assert (await call).lease.replica_id == "a"


async def test_replica_whose_link_is_down_is_excluded_and_another_is_leased() -> None:
    world = World("a", "b")
    world.down = {"a"}
    call = await world.begin()
    world.reply(wire.grant(1, Grant("a", 0)))
    await asyncio.sleep(0.01)
    world.reply(wire.grant(world.requested[-1], Grant("b", 0)))
    placement = await call
    assert (placement.lease.replica_id, placement.failed) == ("b", ("a",))
    assert world.settled == [1]


@pytest.mark.parametrize("granted", [False, True])
async def test_cancelled_request_settles_its_lease(*, granted: bool) -> None:
    world = World("a")
    call = await world.begin()
    if granted:
        world.reply(wire.grant(1, Grant("a", 0)))
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0)
    assert (world.settled, world.placer.leases_in_flight) == ([1], 0)
