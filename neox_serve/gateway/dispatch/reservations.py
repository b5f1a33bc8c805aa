"""A gateway's reservations of tenants' quotas: made at the router before a call runs, settled when it ends.

Open reservations, and what calls used in the last minute and today, are also recorded here, so that the next router learns them from the
hello. Quotas must never be exceeded, so without a router nothing can be reserved and calls of tenants with quotas wait for the next one.
"""

from collections.abc import Callable, Iterator

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.quota import Minute, Reservation, Spent, day_of
from neox_serve.core.tenancy.tenants import Quotas, Tenant
from neox_serve.gateway.dispatch.router_requests import NoReplyError, RouterRequests, Send
from neox_serve.gateway.dispatch.settlements import SettlementBatcher
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

_ROUTER_WAIT_S = 15.0
"""A router that died is replaced within seconds. This also covers the grace period in which the new one learns of running calls."""
_NO_ROUTER_RETRY_S = 2.0


class OpenReservation:
    """A call's reservation. Implements `protocol.ReservationHandle`."""

    def __init__(self, settle: Callable[[int], None]) -> None:
        self._settle: Callable[[int], None] | None = settle

    def settle(self, used_tokens: int) -> None:
        """Ends the reservation, of which the call used this many tokens. Does nothing if it has ended already."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(used_tokens)


class Reservations:
    """All reservations of one gateway.

    send: sends a message to the router. connected: whether the router is connected. clock: seconds since the epoch, never going back.
    """

    def __init__(self, *, send: Send, connected: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[int, Reservation] = {}
        self._minutes: dict[str, Minute] = {}
        self._days: dict[str, tuple[int, int]] = {}  # by tenant: the day, and the tokens used in it
        self._requests = RouterRequests[ServeError | None](send=send, connected=connected, resend=True)
        self._settlements = SettlementBatcher[tuple[int, int]](lambda settled: send(wire.settled_reservations(settled)))

    async def reserve(self, tenant: Tenant, tokens: int) -> OpenReservation:
        """Reserves one request and this many tokens of the tenant's quotas. A tenant without quotas needs no reply from the router.

        Raises ServeError: QUOTA_EXCEEDED, REQUEST_NEVER_FITS, or NO_READY_REPLICA if no router replies.
        """
        if tenant.quotas == Quotas():
            return OpenReservation(lambda _used: None)
        reservation = Reservation(self._requests.next_id(), tenant.name, tokens)
        refusal = await self._request(reservation, tenant.quotas)
        if refusal is not None:
            raise refusal
        self._use(tenant.name, 1, 0)
        return OpenReservation(lambda used_tokens: self._settle(reservation, used_tokens))

    def hello(self) -> tuple[list[Reservation], list[Spent]]:
        """Returns what the next router must know: the open reservations, and what was used."""
        self._settlements.discard()
        return list(self._open.values()), list(self._spent())

    def on_router_connected(self) -> None:
        """Sends the requests that wait for a reply to the new router."""
        self._requests.on_router_connected()

    def on_router_lost(self) -> None:
        """Keeps requests pending: they are sent again to the next router."""
        self._requests.on_router_lost()

    def on_reply(self, response: pb.ReserveResponse) -> None:
        """Handles the router's reply to a reservation request."""
        refusal = wire.refusal_from_proto(response.refusal) if response.HasField("refusal") else None
        expected = self._requests.on_reply(response.reservation_id, refusal)
        if not expected and refusal is None and response.reservation_id not in self._open:  # the call ended in the meantime
            self._settlements.add((response.reservation_id, 0))

    async def _request(self, reservation: Reservation, quotas: Quotas) -> ServeError | None:
        """Returns why the router refuses; None if it has reserved."""

        def enter(refusal: ServeError | None) -> None:
            if refusal is None:  # from here on the hello must list it
                self._open[reservation.reservation_id] = reservation

        self._settlements.flush()  # this call may get the quota that was just released
        message = wire.reserve(reservation, quotas)
        try:
            return await self._requests.call(reservation.reservation_id, message, timeout_s=_ROUTER_WAIT_S, on_reply=enter)
        except NoReplyError:
            self._withdraw(reservation)
            text = "quotas cannot be checked: the router does not reply"
            raise ServeError(Reason.NO_READY_REPLICA, text, {}, _NO_ROUTER_RETRY_S) from None
        except BaseException:
            self._withdraw(reservation)
            raise

    def _withdraw(self, reservation: Reservation) -> None:
        """Releases what the router may have reserved for a call that has ended."""
        self._open.pop(reservation.reservation_id, None)
        self._settlements.add((reservation.reservation_id, 0))

    def _settle(self, reservation: Reservation, used_tokens: int) -> None:
        del self._open[reservation.reservation_id]
        self._use(reservation.tenant, 0, used_tokens)
        self._settlements.add((reservation.reservation_id, used_tokens))

    def _use(self, tenant: str, requests: int, tokens: int) -> None:
        now_s = self._clock()
        minute = self._minutes.setdefault(tenant, Minute())
        minute.expire(now_s)
        minute.add(now_s, requests, tokens)
        day, before = self._days.get(tenant, (day_of(now_s), 0))
        self._days[tenant] = (day_of(now_s), tokens + (before if day == day_of(now_s) else 0))

    def _spent(self) -> Iterator[Spent]:
        """For each tenant: today's use before the last minute, as one entry older than a minute, then the entries of the last minute."""
        now_s = self._clock()
        for tenant, minute in self._minutes.items():
            minute.expire(now_s)
            day, tokens = self._days[tenant]
            recent = list(minute.spent(tenant))
            today = sum(one.tokens for one in recent if day_of(one.at_s) == day)
            if day == day_of(now_s) and tokens > today:
                yield Spent(tenant, max(now_s - 2 * 60.0, day * 86_400.0), 0, tokens - today)
            yield from recent
