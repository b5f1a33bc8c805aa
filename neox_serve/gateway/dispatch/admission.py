"""How a gateway's requests get their leases: from the router, or from the gateway itself where the router is not there or does not answer.

All leases in flight are kept here, so that each is settled once, the next router can be told all of them, and local routing knows the
gateway's own load. Settlements of one turn of the event loop leave as one message.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random

from neox_serve.core.cluster import Demand, Lease, Outstanding, Settled
from neox_serve.core.errors import OwnedElsewhere, Reason, ServeError
from neox_serve.core.scheduling.leases import LeaseBook
from neox_serve.core.scheduling.refusal import UNKNOWN_SLOT_INTERVAL_S, refusal
from neox_serve.core.scheduling.replica_index import Candidate, ReplicaIndex
from neox_serve.core.scheduling.routing import RoutingFailure, choose, power_of_two
from neox_serve.gateway.dispatch.engine_links import EngineLinks
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

Send = Callable[[pb.ConnectGatewayRequest], None]

_ROUTER_WAIT_S = 10.0
"""How long a request that waited in a router's queue waits for the next router, where no replica has room meanwhile."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A lease, and how whoever granted it came to the replica. by_router: else by this gateway, which knows of no caches."""

    lease: Lease
    explanation: str
    by_router: bool = True


@dataclass(slots=True, eq=False)
class _Question:
    """A request for a lease. queued: the router has said that it waits. lost: that router is gone. heard: something has changed."""

    lease_id: int
    demand: Demand
    answer: Admitted | ServeError | OwnedElsewhere | None = None
    queued: bool = False
    lost: bool = False
    heard: asyncio.Event = field(default_factory=asyncio.Event)


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
        self._router_came = asyncio.Event()
        self._replica_index: ReplicaIndex | None = None
        self._asked: dict[int, _Question] = {}
        self._settled: list[Settled] = []

    @property
    def leases_in_flight(self) -> int:
        """Leases granted and not settled."""
        return len(self._book)

    async def lease(self, demand: Demand) -> Admitted:
        """A lease on a replica, maybe after waiting in the router. Raises ServeError: UNKNOWN_MODEL, NO_READY_REPLICA, OVERLOADED.

        Raises OwnedElsewhere where another gateway answers the request.
        """
        while True:
            question = self._question(demand)
            granted = await self._ask_router(question) if self._router_connected() else None
            if granted is not None:
                return granted
            try:
                return self._lease_here(demand)
            except ServeError as error:
                if error.reason is not Reason.OVERLOADED or not question.queued or not await self._router_back():
                    raise

    def settle(self, settled: Settled) -> None:
        """Gives a lease back, with what its request took; again does nothing."""
        if self._book.remove(self._gateway_id, settled.lease_id) is not None:
            self._tell_settled(settled)

    def leases(self) -> tuple[Lease, ...]:
        """All that is in flight, for the hello to a router; what was settled and not yet told needs no telling then."""
        self._settled.clear()
        return self._book.leases(self._gateway_id)

    def on_answer(self, response: pb.AdmitResponse) -> None:
        """The router's answer to a request for admission; late ones have been settled already."""
        question = self._asked.get(response.lease_id)
        if question is None:
            return
        if response.WhichOneof("outcome") == "queued":
            question.queued = True
            question.heard.set()
            return
        if response.WhichOneof("outcome") == "owner_address":
            question.answer = OwnedElsewhere(response.owner_address)
            del self._asked[response.lease_id]
            question.heard.set()
            return
        answer = wire.admission_from_proto(response)
        if isinstance(answer, ServeError):
            question.answer = answer
        else:
            lease = Lease(response.lease_id, answer.replica_id, question.demand.tokens, answer.cached_tokens)
            self._book.add(self._gateway_id, lease)
            question.answer = Admitted(lease, answer.explanation)
        del self._asked[response.lease_id]
        question.heard.set()

    def on_router_connected(self) -> None:
        """A router has taken the hello."""
        self._router_came.set()

    def on_router_lost(self) -> None:
        """The router went away: what waits for it is leased here, where there is room."""
        self._router_came.clear()
        asked, self._asked = self._asked, {}
        for question in asked.values():
            question.lost = True
            question.heard.set()

    def on_links_changed(self) -> None:
        """Replicas or links came, went or changed: routing here looks at all of them again when it is next asked."""
        self._replica_index = None

    def candidates(self) -> list[Candidate]:
        """All replicas known here, with this gateway's own load."""
        return [Candidate(replica, self._book.outstanding(replica.replica_id), up) for replica, up in self._links.replicas()]

    def _question(self, demand: Demand) -> "_Question":
        return _Question(next(self._ids), demand)

    async def _ask_router(self, question: "_Question") -> Admitted | None:
        """The router's lease; None where it does not answer. Raises ServeError where it refuses."""
        self._asked[question.lease_id] = question
        self._flush_settled()  # what was just given back may be what this request gets
        self._send(wire.admit(question.lease_id, question.demand))
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(question.heard.wait(), self._timeout_s)
            while question.queued and question.answer is None and not question.lost:
                question.heard.clear()
                await question.heard.wait()
        except asyncio.CancelledError:
            self._withdraw(question.lease_id)
            raise
        if question.answer is None:
            self._withdraw(question.lease_id)
            return None
        if isinstance(question.answer, ServeError | OwnedElsewhere):
            raise question.answer
        return question.answer

    async def _router_back(self) -> bool:
        """Whether a router has come within the time in which a dead one is replaced."""
        try:
            await asyncio.wait_for(self._router_came.wait(), _ROUTER_WAIT_S)
        except TimeoutError:
            return False
        return True

    def _withdraw(self, lease_id: int) -> None:
        """Takes a question back, whether or not it has been answered."""
        self._asked.pop(lease_id, None)
        self._book.remove(self._gateway_id, lease_id)
        self._tell_settled(Settled(lease_id))

    def _lease_here(self, demand: Demand) -> Admitted:
        if self._replica_index is None:
            self._replica_index = ReplicaIndex(self.candidates())
        choice = choose(power_of_two, self._replica_index, demand, self._rng)
        if isinstance(choice, RoutingFailure):
            raise refusal(choice, demand, UNKNOWN_SLOT_INTERVAL_S)
        lease = Lease(next(self._ids), choice.replica.replica_id, demand.tokens)
        self._book.add(self._gateway_id, lease)
        self._send(wire.adopted((lease,)))
        return Admitted(lease, f"policy=power-of-two why=no-router candidates={choice.candidates}", by_router=False)

    def _credit(self, replica_id: str, outstanding: Outstanding) -> None:
        if self._replica_index is not None:
            self._replica_index.credit(replica_id, outstanding)

    def _tell_settled(self, settled: Settled) -> None:
        if not self._settled:
            asyncio.get_running_loop().call_soon(self._flush_settled)
        self._settled.append(settled)

    def _flush_settled(self) -> None:
        settled, self._settled = self._settled, []
        if settled:
            self._send(wire.settlements(settled))
