"""Places requests on replicas, with leases from the router or, if there is no router or it does not reply, from the gateway itself.

All leases in flight are recorded here. So each is settled once, the next router learns all of them from the hello, and local routing knows
the gateway's own load.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import structlog

from neox_serve.core.cluster import Demand, Lease, Outstanding, Settled
from neox_serve.core.errors import OwnedElsewhere, Reason, ServeError
from neox_serve.core.generation.request_life import RequestEvent, event_of_failure
from neox_serve.core.scheduling.admissions import Queued
from neox_serve.core.scheduling.cluster_state import Grant
from neox_serve.core.scheduling.leases import LeaseBook
from neox_serve.core.scheduling.refusal import UNKNOWN_SLOT_INTERVAL_S, refusal
from neox_serve.core.scheduling.replica_index import Candidate, ReplicaIndex
from neox_serve.core.scheduling.routing import RoutingFailure, choose, power_of_two
from neox_serve.gateway.dispatch.engine_link import EngineLink
from neox_serve.gateway.dispatch.engine_links import EngineLinks
from neox_serve.gateway.dispatch.router_requests import NoReplyError, RouterRequests, Send
from neox_serve.gateway.dispatch.settlements import SettlementBatcher
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

_log = structlog.get_logger(__name__)

_ROUTER_WAIT_S = 10.0
"""How long a request that was in a lost router's queue waits for the next router, if no replica has room in the meantime."""

_Reply = Grant | ServeError | OwnedElsewhere


@dataclass(frozen=True, slots=True)
class Placement:
    """A replica for a request: a lease on it, and the link to it."""

    lease: Lease
    link: EngineLink
    """Up when the placement was made."""
    failed: tuple[str, ...]
    """Ids of the replicas that have failed the request so far."""
    explanation: str = ""
    """How the replica was chosen, for logs and traces."""
    predicted: bool = False
    """Whether the lease's cached_tokens predict what the replica's engine will find; False if nothing is known of its prefix cache."""


class Placer:
    """Finds replicas for requests and keeps the gateway's leases.

    links: the links to replicas. send: sends a message to the router. connected: whether the router is connected. timeout_s: longest wait
    for the router's first reply, after which the gateway chooses a replica itself. link_timeout_s: longest wait for the link to a replica
    that was just granted.
    """

    def __init__(
        self,
        *,
        gateway_id: str,
        links: EngineLinks,
        send: Send,
        connected: Callable[[], bool],
        rng: Random,
        timeout_s: float,
        link_timeout_s: float,
    ) -> None:
        self._gateway_id = gateway_id
        self._links = links
        self._send = send
        self._rng = rng
        self._timeout_s = timeout_s
        self._link_timeout_s = link_timeout_s
        self._book = LeaseBook(self._credit)
        self._router_back = asyncio.Event()
        self._replica_index: ReplicaIndex | None = None
        self._requests = RouterRequests[_Reply](send=send, connected=connected)
        self._settlements = SettlementBatcher[Settled](lambda settled: send(wire.settlements(settled)))

    @property
    def leases_in_flight(self) -> int:
        """Number of leases granted and not settled."""
        return len(self._book)

    async def place(self, request_id: str, demand: Demand) -> Placement:
        """Leases a replica and waits for its link. If the link does not come up, that replica counts as failed and another is leased.

        Raises ServeError (UNKNOWN_MODEL, NO_READY_REPLICA, OVERLOADED, REPLICA_LOST), or OwnedElsewhere if another gateway handles the
        request. If the call is cancelled, its lease is settled.
        """
        while True:
            lease, grant = await self._lease(demand)
            try:
                link = await self._links.up(lease.replica_id, self._link_timeout_s)
            except ServeError as error:
                self.settle(Settled(lease.lease_id))
                if event_of_failure(error, demand.excluded) is not RequestEvent.MOVABLE:
                    raise
                demand = replace(demand, excluded=(*demand.excluded, lease.replica_id))
            except BaseException:
                self.settle(Settled(lease.lease_id))
                raise
            else:
                _log.info("request_placed", request_id=request_id, replica_id=lease.replica_id, failed_replicas=demand.excluded)
                predicted = grant.cached_tokens is not None and self._links.block_tokens(demand.pool) > 0
                return Placement(lease, link, demand.excluded, grant.explanation, predicted)

    def settle(self, settled: Settled) -> None:
        """Ends a lease and reports what its request used. Does nothing if the lease has ended already."""
        if self._book.remove(self._gateway_id, settled.lease_id) is not None:
            self._settlements.add(settled)

    def leases(self) -> tuple[Lease, ...]:
        """Returns the leases in flight, for the hello to a router. Drops unsent settlements, because the hello implies them."""
        self._settlements.discard()
        return self._book.leases(self._gateway_id)

    def candidates(self) -> list[Candidate]:
        """Returns all replicas that this gateway knows, each with the load of this gateway."""
        return [Candidate(replica, self._book.outstanding(replica.replica_id), up) for replica, up in self._links.replicas()]

    def on_reply(self, response: pb.AdmitResponse) -> None:
        """Handles the router's reply to an admission request. A late one is ignored: the request's lease was settled when it ended."""
        outcome = wire.admission_from_proto(response)
        if isinstance(outcome, Queued):
            self._requests.on_queued(response.lease_id)
        else:
            self._requests.on_reply(response.lease_id, outcome)

    def on_router_connected(self) -> None:
        """Lets requests that were in the lost router's queue ask the new one."""
        self._router_back.set()

    def on_router_lost(self) -> None:
        """Lets requests that wait for the router be placed locally, if a replica has room."""
        self._router_back.clear()
        self._requests.on_router_lost()

    def on_links_changed(self) -> None:
        """Makes local routing read all replicas and links again the next time it is used."""
        self._replica_index = None

    async def _lease(self, demand: Demand) -> tuple[Lease, Grant]:
        while True:
            lease_id = self._requests.next_id()
            try:
                return await self._lease_from_router(lease_id, demand)
            except NoReplyError as no_reply:
                queued = no_reply.queued
            try:
                return self._lease_locally(demand)
            except ServeError as error:
                if error.reason is not Reason.OVERLOADED or not queued or not await self._router_returns():
                    raise

    async def _lease_from_router(self, lease_id: int, demand: Demand) -> tuple[Lease, Grant]:
        """Raises NoReplyError, ServeError if the router refuses, or OwnedElsewhere."""

        def enter(reply: _Reply) -> None:
            if isinstance(reply, Grant):
                self._book.add(self._gateway_id, _lease_of(lease_id, demand, reply))

        self._settlements.flush()  # this request may get the capacity that was just released
        try:
            reply = await self._requests.call(lease_id, wire.admit(lease_id, demand), timeout_s=self._timeout_s, on_reply=enter)
        except (NoReplyError, asyncio.CancelledError):
            self._withdraw(lease_id)
            raise
        if isinstance(reply, Grant):
            return _lease_of(lease_id, demand, reply), reply
        raise reply

    async def _router_returns(self) -> bool:
        """Waits for a router for as long as it takes to replace one. Returns whether there is one."""
        try:
            await asyncio.wait_for(self._router_back.wait(), _ROUTER_WAIT_S)
        except TimeoutError:
            return False
        return True

    def _withdraw(self, lease_id: int) -> None:
        """Takes an admission request back, whether or not the router has granted it."""
        self._book.remove(self._gateway_id, lease_id)
        self._settlements.add(Settled(lease_id))

    def _lease_locally(self, demand: Demand) -> tuple[Lease, Grant]:
        if self._replica_index is None:
            self._replica_index = ReplicaIndex(self.candidates())
        choice = choose(power_of_two, self._replica_index, demand, self._rng)
        if isinstance(choice, RoutingFailure):
            raise refusal(choice, demand, UNKNOWN_SLOT_INTERVAL_S)
        explanation = f"policy=power-of-two why=no-router candidates={choice.candidates}"
        grant = Grant(choice.replica.replica_id, None, explanation)
        lease = _lease_of(self._requests.next_id(), demand, grant)
        self._book.add(self._gateway_id, lease)
        self._send(wire.adopted((lease,)))
        return lease, grant

    def _credit(self, replica_id: str, outstanding: Outstanding) -> None:
        if self._replica_index is not None:
            self._replica_index.credit(replica_id, outstanding)


def _lease_of(lease_id: int, demand: Demand, grant: Grant) -> Lease:
    return Lease(lease_id, grant.replica_id, demand.tokens, grant.cached_tokens or 0)
