"""Keeps gateways informed of the replicas: sends the whole list when it has changed, and always before a replica in it is first granted."""

import asyncio
from collections.abc import Callable, Collection

from neox_serve.core.cluster import Replica
from neox_serve.core.scheduling.cluster_state import ClusterState
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

_BATCH_S = 0.02
"""How long a change of the replicas waits for others. If 1,000 replicas register in a second, gateways get 50 messages and not 1,000."""


class ReplicaAnnouncer:
    """Announces replicas to all gateways.

    waking: pools that may have no replica until a request comes. broadcast: sends a message to all connected gateways.
    """

    def __init__(self, state: ClusterState, waking: Collection[Pool], broadcast: Callable[[pb.ConnectGatewayResponse], None]) -> None:
        self._state = state
        self._waking = waking
        self._broadcast = broadcast
        self._sent: tuple[Replica, ...] = ()
        self._sent_ids: frozenset[str] = frozenset()
        self._timer: asyncio.TimerHandle | None = None

    def message(self) -> pb.ConnectGatewayResponse:
        """Returns the list of all replicas, for a gateway that has just connected."""
        return wire.replica_set(self._state.replicas(), self._waking)

    def schedule(self) -> None:
        """Sends the list soon, together with changes that follow."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_BATCH_S, self.send)

    def before_grant(self, replica_id: str) -> None:
        """Sends the list now, if gateways do not know the replica that one of them is about to be granted."""
        if replica_id not in self._sent_ids:
            self.send()

    def send(self) -> None:
        """Sends the list now, if it has changed."""
        self.stop()
        replicas = self._state.replicas()
        if replicas != self._sent:
            self._sent, self._sent_ids = replicas, frozenset(replica.replica_id for replica in replicas)
            self._broadcast(self.message())

    def stop(self) -> None:
        """Cancels a scheduled list."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
