"""The router's state as a synchronous machine: the connected peers, and the leases that gateways hold on replicas.

A peer is CONNECTED while its stream is open. When the stream ends the peer is LOST, and its state is kept for a grace period, so that a
dropped connection loses nothing. Each connection has a number that its events carry, because the end of an old stream may be noticed after
the new one has opened.

    event        from                        to
    connect      unknown, LOST, CONNECTED    CONNECTED; a gateway's hello replaces its leases, a replica keeps the leases on it
    disconnect   CONNECTED                   LOST, if the event is from the newest connection
    expire       LOST, grace period over     forgotten, with its leases
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from neox_serve.core.cluster import (
    ClusterView,
    Demand,
    GatewayView,
    Lease,
    Outstanding,
    Replica,
    ReplicaLoad,
    ReplicaPhase,
    ReplicaView,
)
from neox_serve.core.errors import ServeError
from neox_serve.core.prefix_cache.block_index import BlockIndex, BlockNews
from neox_serve.core.scheduling.leases import LeaseBook
from neox_serve.core.scheduling.refusal import PoolFlow, next_slot_s, refusal
from neox_serve.core.scheduling.replica_index import Candidate, ReplicaIndex
from neox_serve.core.scheduling.routing import DEFAULT_IMBALANCE_THRESHOLD_TOKENS, DEFAULT_POLICY, POLICIES, Route, RoutingFailure, choose
from neox_serve.core.types import Pool

_NO_LOAD = ReplicaLoad()


@dataclass(frozen=True, slots=True)
class Grant:
    """The replica that is to run a request."""

    replica_id: str
    cached_tokens: int | None = 0
    """Prompt tokens expected in the replica's prefix cache; None if whoever granted the replica does not know its cache."""
    explanation: str = field(default="", compare=False)
    """How the replica was chosen, for logs and traces."""


@dataclass(slots=True)
class _Peer:
    """A gateway or a replica."""

    connection: int
    """Number of its newest connection."""
    registered_s: float
    lost_s: float | None = None
    """When its stream ended; None while it is connected."""


@dataclass(slots=True)
class _ReplicaPeer(_Peer):
    """A replica, with its load as last reported."""

    replica: Replica = field(kw_only=True)
    load: ReplicaLoad = _NO_LOAD


class ClusterState:
    """Peers and leases that the router knows. Times are seconds of one monotonic clock.

    grace_s: how long the state of a lost peer is kept. started_s: when this router started. rng: for the routing policy. policy: name of
    the routing policy in core.scheduling.routing.POLICIES. imbalance_threshold_tokens: load imbalance above which that policy ignores cache
    affinity.
    """

    def __init__(
        self,
        *,
        grace_s: float,
        started_s: float,
        rng: Random,
        policy: str = DEFAULT_POLICY,
        imbalance_threshold_tokens: int = DEFAULT_IMBALANCE_THRESHOLD_TOKENS,
    ) -> None:
        self._grace_s = grace_s
        self._started_s = started_s
        self._rng = rng
        self._policy = policy
        self._imbalance_threshold_tokens = imbalance_threshold_tokens
        self._index = BlockIndex()
        self._replicas: dict[str, _ReplicaPeer] = {}
        self._gateways: dict[str, _Peer] = {}
        self._replica_index = ReplicaIndex()
        self._leases = LeaseBook(self._replica_index.credit)
        self._promised_until_s: dict[tuple[Pool, str], float] = {}

    # Replicas

    def connect_replica(self, replica: Replica, connection: int, now_s: float) -> None:
        """Registers a replica, or its new connection. Forgets any other replica at the same address, because it must be gone."""
        for other in [peer.replica for peer in self._replicas.values() if peer.replica.address == replica.address]:
            if other.replica_id != replica.replica_id:
                self._forget_replica(other.replica_id)
        known = self._replicas.get(replica.replica_id)
        registered_s = known.registered_s if known else now_s
        self._enter(_ReplicaPeer(connection, registered_s, replica=replica))

    def report_load(self, replica_id: str, load: ReplicaLoad) -> None:
        """Records a replica's load. Ignores unknown replicas."""
        if peer := self._replicas.get(replica_id):
            peer.load = load
            self._enter(peer)

    def change_phase(self, replica_id: str, phase: ReplicaPhase) -> None:
        """Records a replica's phase, if PHASES_AFTER allows the step. Ignores unknown replicas."""
        if peer := self._replicas.get(replica_id):
            peer.replica = peer.replica.moved_to(phase)
            self._enter(peer)

    def take_block_news(self, replica_id: str, connection: int, news: BlockNews) -> bool:
        """Records a change of a replica's prefix cache. Returns False if a message was missed, so the replica must report everything again.

        Ignores unknown replicas and messages of an old connection.
        """
        peer = self._replicas.get(replica_id)
        return peer is None or peer.connection != connection or self._index.take(replica_id, news)

    def disconnect_replica(self, replica_id: str, connection: int, now_s: float) -> None:
        """Marks a replica as lost, if this is its newest connection."""
        if peer := self._replicas.get(replica_id):
            _lose(peer, connection, now_s)
            self._enter(peer)

    # Gateways

    def connect_gateway(self, gateway_id: str, leases: Iterable[Lease], connection: int, now_s: float) -> None:
        """Registers a gateway, or its new connection. These leases replace all that it held."""
        known = self._gateways.get(gateway_id)
        self._gateways[gateway_id] = _Peer(connection, known.registered_s if known else now_s)
        self._leases.replace(gateway_id, leases)

    def adopt(self, gateway_id: str, leases: Iterable[Lease]) -> None:
        """Records leases that a gateway granted itself. Ignores unknown gateways."""
        if gateway_id in self._gateways:
            for lease in leases:
                self._leases.add(gateway_id, lease)

    def disconnect_gateway(self, gateway_id: str, connection: int, now_s: float) -> None:
        """Marks a gateway as lost, if this is its newest connection."""
        if peer := self._gateways.get(gateway_id):
            _lose(peer, connection, now_s)

    # Requests

    def admit(self, gateway_id: str, lease_id: int, demand: Demand, now_s: float) -> Grant | ServeError:
        """Grants a replica to a request, or returns the refusal: UNKNOWN_MODEL, NO_READY_REPLICA or OVERLOADED."""
        answer = self.try_admit(gateway_id, lease_id, demand)
        return self.refuse(answer, demand, now_s) if isinstance(answer, RoutingFailure) else answer

    def try_admit(self, gateway_id: str, lease_id: int, demand: Demand) -> Grant | RoutingFailure:
        """Grants a replica to a request, or returns why none can take it."""
        holdings = self._index.look_up(demand.blocks)
        choice = choose(
            POLICIES[self._policy],
            self._replica_index,
            demand,
            self._rng,
            holdings=holdings,
            imbalance_threshold_tokens=self._imbalance_threshold_tokens,
        )
        if isinstance(choice, RoutingFailure):
            return choice
        self._leases.add(gateway_id, Lease(lease_id, choice.replica.replica_id, demand.tokens, choice.cached_tokens))
        return Grant(choice.replica.replica_id, choice.cached_tokens, self._explain(choice))

    def refuse(self, failure: RoutingFailure, demand: Demand, now_s: float) -> ServeError:
        """Returns the error of a request that finds no replica. If all are full, it carries the next slot that is not promised yet."""
        return refusal(failure, demand, self._promise_slot(demand, now_s) if failure is RoutingFailure.FULL else 0.0)

    def has_room(self, pool: Pool, model: str) -> bool:
        """Returns whether a replica of the model can take one more request."""
        return bool(self._replica_index.members(pool, model).free)

    def ready_count(self, pool: Pool, model: str) -> int:
        """Returns the number of ready replicas of the model, full ones included."""
        return self._replica_index.members(pool, model).ready

    def settle(self, gateway_id: str, lease_ids: Iterable[int]) -> None:
        """Ends leases. Ignores unknown ones."""
        for lease_id in lease_ids:
            self._leases.remove(gateway_id, lease_id)

    def may_become_ready(self, demand: Demand, now_s: float) -> bool:
        """Returns whether a replica for the request may register at any moment: this router has just started, or has just lost one."""
        return now_s < self._started_s + self._grace_s or any(
            peer.lost_s is not None
            and peer.replica.phase is ReplicaPhase.READY
            and (peer.replica.pool, peer.replica.model) == (demand.pool, demand.model)
            and peer.replica.replica_id not in demand.excluded
            for peer in self._replicas.values()
        )

    # Time

    def expire(self, now_s: float) -> tuple[str, ...]:
        """Forgets the peers whose grace period is over, with their leases, and returns their ids.

        Each call also removes some entries of forgotten replicas from the block index.
        """
        self._index.sweep()
        replicas = [key for key, peer in self._replicas.items() if self._is_over(peer, now_s)]
        gateways = [key for key, peer in self._gateways.items() if self._is_over(peer, now_s)]
        for replica_id in replicas:
            self._forget_replica(replica_id)
        for gateway_id in gateways:
            del self._gateways[gateway_id]
            self._leases.drop_gateway(gateway_id)
        return (*replicas, *gateways)

    # Queries

    def replicas(self) -> tuple[Replica, ...]:
        """Returns all replicas. Lost ones are included until they are forgotten, because gateways may still reach them."""
        return tuple(peer.replica for peer in self._replicas.values())

    def outstanding(self, replica_id: str) -> Outstanding:
        """Returns the sum of the leases on a replica."""
        return self._leases.outstanding(replica_id)

    def outstanding_in(self, pool: Pool) -> Outstanding:
        """Returns the sum of the leases on all replicas of a pool."""
        return self._replica_index.outstanding(pool)

    def leases(self, gateway_id: str) -> tuple[Lease, ...]:
        """Returns all leases of a gateway."""
        return self._leases.leases(gateway_id)

    def lease_count(self) -> int:
        """Returns the number of leases of all gateways."""
        return len(self._leases)

    def block_count(self) -> int:
        """Returns the number of blocks known to be in replicas' prefix caches."""
        return len(self._index)

    def gateway_count(self) -> int:
        """Returns the number of gateways, including lost ones that are not forgotten yet."""
        return len(self._gateways)

    def view(self, now_s: float) -> ClusterView:
        """Returns the replicas and gateways with their load."""
        replicas = tuple(
            ReplicaView(peer.replica, peer.load, self.outstanding(key), now_s - peer.registered_s, lost=peer.lost_s is not None)
            for key, peer in self._replicas.items()
        )
        gateways = tuple(GatewayView(key, self._leases.requests(key), now_s - peer.registered_s) for key, peer in self._gateways.items())
        return ClusterView(replicas, gateways, from_router=True)

    def _enter(self, peer: _ReplicaPeer) -> None:
        """Passes a change of a replica to the replica index. The lease book passes changes of leases itself."""
        replica_id = peer.replica.replica_id
        self._replicas[replica_id] = peer
        outstanding, load = self._leases.outstanding(replica_id), peer.load
        self._replica_index.put(Candidate(peer.replica, outstanding, peer.lost_s is None, load.output_tokens_per_second, load.adapters))

    def _explain(self, route: Route) -> str:
        return f"policy={self._policy} why={route.reason} cached_tokens={route.cached_tokens} candidates={route.candidates}"

    def _promise_slot(self, demand: Demand, now_s: float) -> float:
        key = (demand.pool, demand.model)
        slot_s = next_slot_s(self._promised_until_s.get(key, now_s), self._flow(demand), now_s)
        self._promised_until_s[key] = slot_s
        return slot_s - now_s

    def _flow(self, demand: Demand) -> PoolFlow:
        members = self._replica_index.members(demand.pool, demand.model)
        outstanding = members.outstanding
        return PoolFlow(outstanding.requests, outstanding.tokens, members.tokens_per_second)

    def _is_over(self, peer: _Peer, now_s: float) -> bool:
        return peer.lost_s is not None and now_s >= peer.lost_s + self._grace_s

    def _forget_replica(self, replica_id: str) -> None:
        del self._replicas[replica_id]
        self._replica_index.remove(replica_id)
        self._index.forget(replica_id)
        self._leases.drop_replica(replica_id)


def _lose(peer: _Peer, connection: int, now_s: float) -> None:
    if peer.connection == connection and peer.lost_s is None:
        peer.lost_s = now_s
