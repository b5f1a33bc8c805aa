"""A gateway's reservations of tenants' quotas: made at the router before a call runs, settled when it ends.

What is open, and what was used in the last minute and this day, is kept here too, so that the next router learns it from the hello. While
there is no router nothing can be reserved: quotas are never overshot, so calls of tenants that have any wait for the next one.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.quota import Minute, Reservation, Spent, day_of
from neox_serve.core.tenancy.tenants import Quotas, Tenant
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

ROUTER_WAIT_S = 15.0
"""A router that died is back in seconds; with the grace in which it learns of running calls this is enough."""
_NO_ROUTER_RETRY_S = 2.0

Send = Callable[[pb.ConnectGatewayRequest], None]


class OpenReservation:
    """One call's reservation. It must be settled, once; again does nothing."""

    def __init__(self, settle: Callable[[int], None]) -> None:
        self._settle: Callable[[int], None] | None = settle

    def settle(self, used_tokens: int) -> None:
        """The call has ended and used so much."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(used_tokens)


class Reservations:
    """All of one gateway. send: to the router, dropped where there is none. clock: seconds since the epoch, never going back."""

    def __init__(self, *, send: Send, clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._ids = count(1)
        self._open: dict[int, Reservation] = {}
        self._asked: dict[int, tuple[Reservation, Quotas, asyncio.Future[ServeError | None]]] = {}
        self._minutes: dict[str, Minute] = {}
        self._days: dict[str, tuple[int, int]] = {}
        self._settled: list[tuple[int, int]] = []

    async def reserve(self, tenant: Tenant, tokens: int) -> OpenReservation:
        """Reserves tokens and a request. Raises ServeError: QUOTA_EXCEEDED, REQUEST_NEVER_FITS, or NO_READY_REPLICA without a router.

        A tenant without quotas needs nobody's leave.
        """
        if tenant.quotas == Quotas():
            return OpenReservation(lambda _used: None)
        reservation = Reservation(next(self._ids), tenant.name, tokens)
        refusal = await self._answer(reservation, tenant.quotas)
        if refusal is not None:
            raise refusal
        self._use(tenant.name, 1, 0)
        return OpenReservation(lambda used_tokens: self._settle(reservation, used_tokens))

    def hello(self) -> tuple[list[Reservation], list[Spent]]:
        """What the next router must know: open reservations, and what was used."""
        self._settled.clear()
        return list(self._open.values()), list(self._spent())

    def on_connected(self) -> None:
        """A router has taken the hello: what waits for an answer is asked again."""
        for reservation, quotas, _ in self._asked.values():
            self._send(wire.reserve(reservation, quotas))

    def on_answer(self, response: pb.ReserveResponse) -> None:
        """The router's answer."""
        number, asked = response.reservation_id, self._asked.get(response.reservation_id)
        refusal = wire.refusal_from_proto(response.refusal) if response.HasField("refusal") else None
        if asked is not None and not asked[2].done():
            if refusal is None:  # from here on the next router must know of it
                self._open[number] = asked[0]
            asked[2].set_result(refusal)
        elif refusal is None and number not in self._open:  # asked twice, and the first answer ended it
            self._tell(number, 0)

    async def _answer(self, reservation: Reservation, quotas: Quotas) -> ServeError | None:
        number = reservation.reservation_id
        future: asyncio.Future[ServeError | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = (reservation, quotas, future)
        self._flush_settled()  # what was just given back may be what this call gets
        self._send(wire.reserve(reservation, quotas))
        try:
            async with asyncio.timeout(ROUTER_WAIT_S):
                return await future
        except BaseException as error:
            self._withdraw(reservation)
            if isinstance(error, TimeoutError):
                message = "quotas cannot be checked: the router does not answer"
                raise ServeError(Reason.NO_READY_REPLICA, message, {}, _NO_ROUTER_RETRY_S) from None
            raise
        finally:
            del self._asked[number]

    def _withdraw(self, reservation: Reservation) -> None:
        """Gives back what the router may have reserved for a call that is gone."""
        self._open.pop(reservation.reservation_id, None)
        self._tell(reservation.reservation_id, 0)

    def _settle(self, reservation: Reservation, used_tokens: int) -> None:
        del self._open[reservation.reservation_id]
        self._use(reservation.tenant, 0, used_tokens)
        self._tell(reservation.reservation_id, used_tokens)

    def _use(self, tenant: str, requests: int, tokens: int) -> None:
        now_s = self._clock()
        minute = self._minutes.setdefault(tenant, Minute())
        minute.expire(now_s)
        minute.add(now_s, requests, tokens)
        day, before = self._days.get(tenant, (day_of(now_s), 0))
        self._days[tenant] = (day_of(now_s), tokens + (before if day == day_of(now_s) else 0))

    def _spent(self) -> Iterator[Spent]:
        """By tenant: what this day had before the last minute as one entry, a minute old; then that minute's entries."""
        now_s = self._clock()
        for tenant, minute in self._minutes.items():
            minute.expire(now_s)
            day, tokens = self._days[tenant]
            recent = list(minute.spent(tenant))
            today = sum(one.tokens for one in recent if day_of(one.at_s) == day)
            if day == day_of(now_s) and tokens > today:
                yield Spent(tenant, max(now_s - 2 * 60.0, day * 86_400.0), 0, tokens - today)
            yield from recent

    def _tell(self, reservation_id: int, used_tokens: int) -> None:
        if not self._settled:
            asyncio.get_running_loop().call_soon(self._flush_settled)
        self._settled.append((reservation_id, used_tokens))

    def _flush_settled(self) -> None:
        settled, self._settled = self._settled, []
        if settled:
            self._send(wire.settled_reservations(settled))
