"""A gateway's links to all replicas, opened as the router lists them.

A replica that the router no longer lists is kept while its link is up: a router that has just started lists none, and streams must go on.
Once its link has ended, the replica is forgotten.
"""

import asyncio
from collections.abc import Callable, Iterable
from random import Random

from neox_serve.core.cluster import Replica, ReplicaPhase
from neox_serve.core.generation.request_life import replica_lost
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.engine_link import EngineLink
from neox_serve.link.channels import LinkTls


class EngineLinks:
    """All known replicas and their links. on_change: called when a replica or a link changes."""

    def __init__(self, *, gateway_id: str, rng: Random, on_change: Callable[[], None], tls: LinkTls | None = None) -> None:
        self._tls = tls
        self._gateway_id = gateway_id
        self._rng = rng
        self._on_change = on_change
        self._replicas: dict[str, Replica] = {}
        self._links: dict[str, EngineLink] = {}
        self._named: frozenset[str] = frozenset()
        self._block_tokens: dict[Pool, int] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def update(self, replicas: Iterable[Replica]) -> None:
        """Takes the router's complete list of replicas: opens links to new ones and forgets unlisted ones whose link is down."""
        named = {replica.replica_id: replica for replica in replicas}
        self._named = frozenset(named)
        self._replicas.update(named)
        self._block_tokens.update((replica.pool, replica.block_tokens) for replica in named.values() if replica.block_tokens)
        for replica in named.values():
            if replica.replica_id not in self._links and replica.phase is not ReplicaPhase.DRAINING:
                self._open(replica)
        for replica_id in list(self._replicas):
            self._forget_if_gone(replica_id)
        self._on_change()

    def replicas(self) -> list[tuple[Replica, bool]]:
        """Returns all known replicas, each with whether its link is up."""
        return [(replica, self.is_up(replica_id)) for replica_id, replica in self._replicas.items()]

    def block_tokens(self, pool: Pool) -> int:
        """Returns the tokens per block of the pool's prefix caches, as last listed; 0 if no replica reports its cache."""
        return self._block_tokens.get(pool, 0)

    def is_up(self, replica_id: str) -> bool:
        """Returns whether the link to a replica is up."""
        link = self._links.get(replica_id)
        return link is not None and link.is_up

    async def up(self, replica_id: str, timeout_s: float) -> EngineLink:
        """Returns the link to a replica once it is up. Raises ServeError(REPLICA_LOST) if it is not up within timeout_s."""
        link = self._links.get(replica_id)
        if link is None:
            raise replica_lost(replica_id)
        if not link.is_up:
            await link.until_up(timeout_s)
        return link

    async def close(self) -> None:
        """Closes all links."""
        await asyncio.gather(*(link.close() for link in self._links.values()), *self._closing)
        self._links.clear()

    def _open(self, replica: Replica) -> None:
        link = EngineLink(
            replica_id=replica.replica_id,
            address=replica.address,
            gateway_id=self._gateway_id,
            rng=self._rng,
            on_change=self._link_changed,
            tls=self._tls,
        )
        self._links[replica.replica_id] = link
        link.start()

    def _link_changed(self, link: EngineLink) -> None:
        self._forget_if_gone(link.replica_id)
        self._on_change()

    def _forget_if_gone(self, replica_id: str) -> None:
        if replica_id in self._named or self.is_up(replica_id):
            return
        self._replicas.pop(replica_id, None)
        link = self._links.pop(replica_id, None)
        if link is not None:
            task = asyncio.ensure_future(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
