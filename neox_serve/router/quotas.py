"""The router's quota service: gateways' reservations on the ledger of `core.tenancy.quota`."""

from collections.abc import Callable, Iterable, Mapping
from random import Random

from neox_serve.core.tenancy.quota import QuotaLedger, QuotaState, Spent
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.link.streams import SendQueue
from neox_serve.router.metrics import RouterMetrics
from neox_serve.wire import router_messages as wire


class QuotaService:
    """Replies to reservation requests.

    A router that has just started does not know the running calls until their gateways have sent a hello, so requests wait until then.
    clock: monotonic seconds. wall_clock: seconds since the epoch. opens_s: time of `clock` until which gateways may still send their hello.
    """

    def __init__(
        self, *, clock: Callable[[], float], wall_clock: Callable[[], float], opens_s: float, metrics: RouterMetrics, rng: Random
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._opens_s = opens_s
        self._metrics = metrics
        self._early: list[tuple[str, SendQueue[pb.ConnectGatewayResponse], pb.ReserveRequest]] = []
        self.ledger = QuotaLedger(rng)
        """What tenants have reserved and used."""

    def restore(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        """Takes what was used before this router started, by gateway id. The hello of a gateway that still runs replaces its entry."""
        for source, entries in spent.items():
            self.ledger.restore(source, (), entries, self._wall_clock())

    def register(self, gateway_id: str, hello: pb.GatewayHello) -> None:
        """Takes the reservations and use in a gateway's hello."""
        reservations = map(wire.reservation_from_proto, hello.reservations)
        self.ledger.restore(gateway_id, reservations, map(wire.spent_from_proto, hello.spent), self._wall_clock())

    def reserve(self, gateway_id: str, send_queue: SendQueue[pb.ConnectGatewayResponse], request: pb.ReserveRequest) -> None:
        """Replies to a request, or holds it until all gateways have had time to send their hello."""
        if self._clock() < self._opens_s:
            self._early.append((gateway_id, send_queue, request))
            return
        reservation = wire.reservation_from_proto(request.reservation)
        refusal = self.ledger.reserve(gateway_id, reservation, wire.quotas_from_proto(request.quotas), self._wall_clock())
        self._metrics.reserved("reserved" if refusal is None else refusal.reason.value)
        send_queue.put(wire.reserved(reservation.reservation_id, refusal))

    def settle(self, gateway_id: str, message: pb.SettledReservations) -> None:
        """Ends reservations whose calls ended, and drops their requests that are still held."""
        for one in message.settled:
            self._early = [
                entry for entry in self._early if (entry[0], entry[2].reservation.reservation_id) != (gateway_id, one.reservation_id)
            ]
            self.ledger.settle(gateway_id, one.reservation_id, one.used_tokens, self._wall_clock())

    def state(self, tenant: str) -> QuotaState:
        """Returns what counts against a tenant's quotas now."""
        return self.ledger.state(tenant, self._wall_clock())

    def drop(self, send_queue: SendQueue[pb.ConnectGatewayResponse]) -> None:
        """Drops the held requests of a stream that ended: its gateway sends them again on the next one."""
        self._early = [entry for entry in self._early if entry[1] is not send_queue]

    def forget(self, gateway_ids: Iterable[str]) -> None:
        """Ends the reservations of gateways that will not return."""
        for gateway_id in gateway_ids:
            self.ledger.drop_source(gateway_id, self._wall_clock())

    def tick(self) -> None:
        """Replies to the held requests, once gateways have had time to send their hello."""
        if self._early and self._clock() >= self._opens_s:
            early, self._early = self._early, []
            for gateway_id, send_queue, request in early:
                self.reserve(gateway_id, send_queue, request)
