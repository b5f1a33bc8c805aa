"""Quotas over the real link: two gateways, 256 concurrent calls, and a router that dies."""

import asyncio
from random import Random
from typing import Any

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.tenants import Quotas, Tenant
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from tests.fakes.link_cluster import LinkCluster, failure_of, until

LIMIT = 10_000
ACME = Tenant("acme", quotas=Quotas(tokens_per_minute=LIMIT, tokens_per_day=2 * LIMIT, concurrent_requests=200))


class Account:
    """Tokens used and errors of the calls of a test."""

    def __init__(self) -> None:
        self.used = 0
        self.running = 0
        self.max_running = 0
        self.refused: list[ServeError] = []
        self.rng = Random(0)

    async def call(self, dispatcher: LinkDispatcher, tenant: Tenant = ACME) -> None:
        """Makes a call that uses a random part of its reservation."""
        max_tokens = self.rng.randint(50, 200)
        try:
            reservation = await dispatcher.reserve(tenant, max_tokens)
        except ServeError as error:
            self.refused.append(error)
            return
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await asyncio.sleep(self.rng.random() * 0.05)
        used = self.rng.randint(0, max_tokens)
        self.used += used
        self.running -= 1
        reservation.settle(used)


async def gateways(cluster: LinkCluster) -> list[LinkDispatcher]:
    both = [await cluster.dispatcher(name, replicas=0) for name in ("g1", "g2")]
    await until(lambda: all(one.router_connected for one in both))
    return both


async def test_quotas_hold_for_256_concurrent_calls_at_two_gateways() -> None:
    async with LinkCluster() as cluster:
        await cluster.router(grace_s=0.1)
        both, account = await gateways(cluster), Account()

        async def client(number: int) -> None:
            for _ in range(4):
                await account.call(both[number % 2])

        await asyncio.gather(*(client(number) for number in range(256)))
        assert account.used <= LIMIT
        assert account.used > LIMIT - 256 * 200 / 4  # most calls were not refused
        assert 0 < account.max_running <= 200
        assert {error.reason for error in account.refused} == {Reason.QUOTA_EXCEEDED}
        assert all(error.retry_after_s and error.quota_violations for error in account.refused)


async def test_quotas_hold_when_the_router_dies_and_is_replaced() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router(grace_s=0.1)
        both, account = await gateways(cluster), Account()
        stop = asyncio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                await account.call(both[number % 2])
                await asyncio.sleep(0.01)

        clients = [asyncio.create_task(client(number)) for number in range(64)]
        for _ in range(3):
            await asyncio.sleep(0.2)
            await router.stop()
            router = await cluster.router(grace_s=1.0)
            await until(lambda: all(one.router_connected for one in both))
            await asyncio.sleep(1.2)
            assert account.used <= LIMIT
        stop.set()
        await asyncio.gather(*clients)
        await asyncio.sleep(0.1)
        state = router.ledger.state("acme", router.wall_clock())
        assert (state.reserved_requests, state.minute_tokens) == (0, account.used)
        assert LIMIT / 2 < account.used <= LIMIT


async def test_call_without_a_router_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router(grace_s=0.1)
        (gateway, _), account = await gateways(cluster), Account()
        await router.stop()
        waiting = asyncio.create_task(account.call(gateway))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await cluster.router(grace_s=0.1)
        await waiting
        assert not account.refused
        unlimited = await gateway.reserve(Tenant("free"), 10**9)
        unlimited.settle(5)


async def test_reservations_of_a_lost_gateway_count_as_used() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router(grace_s=0.2)
        dying, other = await gateways(cluster)
        await dying.reserve(ACME, 6_000)
        await dying.close()
        assert (await failure_of(other.reserve(ACME, 6_000))).reason is Reason.QUOTA_EXCEEDED
        await until(lambda: router.ledger.state("acme", router.wall_clock()).reserved_requests == 0)
        assert router.ledger.state("acme", router.wall_clock()).minute_tokens == 6_000


async def test_cancelled_call_releases_its_reservation() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router(grace_s=0.3)
        gateway, _ = await gateways(cluster)
        reserving: asyncio.Task[Any] = asyncio.create_task(gateway.reserve(ACME, 6_000))
        await asyncio.sleep(0.05)
        reserving.cancel()
        await asyncio.gather(reserving, return_exceptions=True)
        await asyncio.sleep(0.5)
        assert router.ledger.state("acme", router.wall_clock()).reserved_tokens == 0
