"""How a gateway's requests get their leases: from the router, or from the gateway itself where the router is not there or does not answer.

All leases in flight are kept here, so that each is settled once, the next router can be told all of them, and local routing knows the
gateway's own load. Settlements of one turn of the event loop leave as one message.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random

from neox_serve.core.cluster import Demand, Lease, Outstanding
from neox_serve.core.errors import ServeError
from neox_serve.core.leases import LeaseBook
from neox_serve.core.refusal import UNKNOWN_SLOT_INTERVAL_S, refusal
from neox_serve.core.roster import Candidate, Roster
from neox_serve.core.routing import Shortage, choose
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.link.engine_links import EngineLinks
from neox_serve.wire import router_messages as wire

Send = Callable[[pb.ConnectGatewayRequest], None]


class Admission:
    """A gateway's leases. send: to the router, dropped where there is none. router_connected: whether it is worth asking."""

    def __init__(
        self,
        *,
        gateway_id: str,
        links: EngineLinks,
        send: Send,
        router_connected: Callable[[], bool],
        rng: Random,
        timeout_s: float,
    ) -> None:
        self._gateway_id = gateway_id
        self._links = links
        self._send = send
        self._router_connected = router_connected
        self._rng = rng
        self._timeout_s = timeout_s
        self._ids = count(1)
        self._book = LeaseBook(self._credit)
        self._roster: Roster | None = None
        self._asked: dict[int, tuple[Demand, asyncio.Future[Lease | ServeError | None]]] = {}
        self._settled: list[int] = []

    @property
    def leases_in_flight(self) -> int:
        """Leases granted and not settled."""
        return len(self._book)

    async def lease(self, demand: Demand) -> Lease:
        """A lease on a replica. Raises ServeError: UNKNOWN_MODEL, NO_READY_REPLICA, OVERLOADED."""
        granted = await self._ask_router(demand) if self._router_connected() else None
        return granted or self._lease_here(demand)

    def settle(self, lease: Lease) -> None:
        """Gives a lease back; again does nothing."""
        if self._book.remove(self._gateway_id, lease.lease_id) is not None:
            self._tell_settled(lease.lease_id)

    def hello(self) -> pb.ConnectGatewayRequest:
        """The first message to a router: all that is in flight."""
        self._settled.clear()
        return wire.gateway_hello(self._gateway_id, self._book.leases(self._gateway_id))

    def on_answer(self, response: pb.AdmitResponse) -> None:
        """The router's answer to a request for admission; late ones have been settled already."""
        asked = self._asked.pop(response.lease_id, None)
        if asked is None:
            return
        demand, future = asked
        answer = wire.admission_from_proto(response)
        if isinstance(answer, ServeError):
            future.set_result(answer)
            return
        lease = Lease(response.lease_id, answer, demand.tokens)
        self._book.add(self._gateway_id, lease)
        future.set_result(lease)

    def on_router_lost(self) -> None:
        """The router went away: what waits for it is leased here."""
        asked, self._asked = self._asked, {}
        for _, future in asked.values():
            future.set_result(None)

    def on_links_changed(self) -> None:
        """Replicas or links came, went or changed: routing here looks at all of them again when it is next asked."""
        self._roster = None

    def candidates(self) -> list[Candidate]:
        """All replicas known here, with this gateway's own load."""
        return [Candidate(replica, self._book.outstanding(replica.replica_id), up) for replica, up in self._links.replicas()]

    async def _ask_router(self, demand: Demand) -> Lease | None:
        """The router's lease; None where it does not answer. Raises ServeError where it refuses."""
        lease_id = next(self._ids)
        future: asyncio.Future[Lease | ServeError | None] = asyncio.get_running_loop().create_future()
        self._asked[lease_id] = (demand, future)
        self._flush_settled()  # what was just given back may be what this request gets
        self._send(wire.admit(lease_id, demand))
        try:
            await asyncio.wait((future,), timeout=self._timeout_s)
        except asyncio.CancelledError:
            self._withdraw(lease_id)
            raise
        if not future.done():
            self._withdraw(lease_id)
            return None
        answer = future.result()
        if isinstance(answer, ServeError):
            raise answer
        return answer

    def _withdraw(self, lease_id: int) -> None:
        """Takes a question back, whether or not it has been answered."""
        self._asked.pop(lease_id, None)
        self._book.remove(self._gateway_id, lease_id)
        self._tell_settled(lease_id)

    def _lease_here(self, demand: Demand) -> Lease:
        if self._roster is None:
            self._roster = Roster(self.candidates())
        choice = choose(self._roster, demand, self._rng)
        if isinstance(choice, Shortage):
            raise refusal(choice, demand, UNKNOWN_SLOT_INTERVAL_S)
        lease = Lease(next(self._ids), choice.replica_id, demand.tokens)
        self._book.add(self._gateway_id, lease)
        self._send(wire.adopted((lease,)))
        return lease

    def _credit(self, replica_id: str, outstanding: Outstanding) -> None:
        if self._roster is not None:
            self._roster.credit(replica_id, outstanding)

    def _tell_settled(self, lease_id: int) -> None:
        if not self._settled:
            asyncio.get_running_loop().call_soon(self._flush_settled)
        self._settled.append(lease_id)

    def _flush_settled(self) -> None:
        settled, self._settled = self._settled, []
        if settled:
            self._send(wire.settlements(settled))
