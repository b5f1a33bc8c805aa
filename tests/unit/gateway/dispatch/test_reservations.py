"""Reservations of quotas at a router that replies late, twice or not at all."""

import asyncio

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.tenants import Quotas, Tenant
from neox_serve.gateway.dispatch import reservations as module
from neox_serve.gateway.dispatch.reservations import OpenReservation, Reservations
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

ACME = Tenant("acme", quotas=Quotas(tokens_per_minute=1000))


class Router:
    """The other end of the link: records what a gateway sends while it is connected."""

    def __init__(self) -> None:
        self.connected = True
        self.requested: list[int] = []
        self.settled: list[tuple[int, int]] = []
        self.reservations = Reservations(send=self.send, connected=lambda: self.connected, clock=lambda: 1000.0)

    def send(self, message: pb.ConnectGatewayRequest) -> None:
        if not self.connected:
            return
        if message.HasField("reserve"):
            self.requested.append(message.reserve.reservation.reservation_id)
        self.settled += [(one.reservation_id, one.used_tokens) for one in message.settled_reservations.settled]

    def reply(self, number: int, refusal: ServeError | None = None) -> None:
        self.reservations.on_reply(wire.reserved(number, refusal).reserve)

    def open_ids(self) -> list[int]:
        return [one.reservation_id for one in self.reservations.hello()[0]]


async def begin(router: Router) -> asyncio.Task[OpenReservation]:
    call = asyncio.ensure_future(router.reservations.reserve(ACME, 100))
    await asyncio.sleep(0)
    return call


async def test_reservation_is_in_the_hello_until_it_is_settled_once() -> None:
    router = Router()
    call = await begin(router)
    router.reply(1)
    assert router.open_ids() == [1]
    reservation = await call
    reservation.settle(40)
    reservation.settle(50)
    await asyncio.sleep(0)
    assert (router.settled, router.open_ids()) == ([(1, 40)], [])
    assert [(one.requests, one.tokens) for one in router.reservations.hello()[1]] == [(1, 40)]


async def test_refused_reservation_raises_and_leaves_nothing_open() -> None:
    router = Router()
    call = await begin(router)
    router.reply(1, ServeError(Reason.QUOTA_EXCEEDED, "too much"))
    with pytest.raises(ServeError) as caught:
        await call
    assert (caught.value.reason, router.open_ids()) == (Reason.QUOTA_EXCEEDED, [])


async def test_tenant_without_quotas_needs_no_router() -> None:
    router = Router()
    router.connected = False
    (await router.reservations.reserve(Tenant("free"), 10**9)).settle(5)
    assert router.open_ids() == []


async def test_lost_router_is_asked_again_and_a_second_reply_is_ignored() -> None:
    router = Router()
    call = await begin(router)
    router.connected = False
    router.reservations.on_router_lost()
    router.connected = True
    router.reservations.on_router_connected()
    router.reply(1)
    await call
    router.reply(1)
    await asyncio.sleep(0)
    assert (router.requested, router.settled, router.open_ids()) == ([1, 1], [], [1])


@pytest.mark.parametrize("replied", [False, True])
async def test_cancelled_call_releases_what_the_router_reserves(*, replied: bool) -> None:
    router = Router()
    call = await begin(router)
    if replied:
        router.reply(1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0)
    assert (router.settled, router.open_ids()) == ([(1, 0)], [])


async def test_late_reply_to_an_ended_call_releases_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUTER_WAIT_S", 0.01)
    router = Router()
    with pytest.raises(ServeError) as caught:
        await router.reservations.reserve(ACME, 100)
    assert caught.value.reason is Reason.NO_READY_REPLICA
    await asyncio.sleep(0)
    router.settled.clear()
    router.reply(1)
    await asyncio.sleep(0)
    assert (router.settled, router.open_ids()) == ([(1, 0)], [])
