"""The leases of all gateways, with their sums by replica.

Invariants, checked by property tests: the sums of a replica equal the sums over the leases on it; nothing is ever negative; removing a
lease that is not there changes nothing.
"""

from collections.abc import Callable, Collection, Iterable

from neox_serve.core.cluster import Lease, Outstanding

_NONE = Outstanding()


class LeaseBook:
    """Leases by gateway and by replica, with running sums.

    A lease may name a replica that has not registered yet, because gateways report their leases independently of replicas. on_change:
    called with a replica's id and its new sums after each change.
    """

    def __init__(self, on_change: Callable[[str, Outstanding], None] = lambda _replica_id, _outstanding: None) -> None:
        self._on_change = on_change
        # The garbage collector does not track dicts of numbers and strings; with 200,000 lease objects it would stop a router for 60 ms.
        self._replica_ids: dict[str, dict[int, str]] = {}  # by gateway and lease
        self._tokens: dict[str, dict[str, dict[int, int]]] = {}  # by replica, gateway and lease
        self._cached: dict[str, dict[int, int]] = {}  # by gateway and lease, if it is not 0
        self._sums: dict[str, Outstanding] = {}

    def add(self, gateway_id: str, lease: Lease) -> None:
        """Adds a lease, or replaces the gateway's lease with the same id."""
        self.remove(gateway_id, lease.lease_id)
        self._put_all(gateway_id, (lease,))

    def remove(self, gateway_id: str, lease_id: int) -> Lease | None:
        """Removes a lease and returns it; None if it is not there."""
        replica_id = self._replica_ids.get(gateway_id, {}).get(lease_id)
        if replica_id is None:
            return None
        lease = self._lease(gateway_id, lease_id, replica_id)
        self._remove_all(gateway_id, (lease,))
        return lease

    def replace(self, gateway_id: str, leases: Iterable[Lease]) -> None:
        """Replaces all leases of a gateway by the given ones."""
        named = {lease.lease_id: lease for lease in leases}
        self._remove_all(gateway_id, [lease for lease in self.leases(gateway_id) if named.get(lease.lease_id) != lease])
        kept = self._replica_ids.get(gateway_id, {})
        self._put_all(gateway_id, [lease for lease in named.values() if lease.lease_id not in kept])

    def drop_gateway(self, gateway_id: str) -> None:
        """Removes all leases of a gateway."""
        self._remove_all(gateway_id, self.leases(gateway_id))
        self._replica_ids.pop(gateway_id, None)
        self._cached.pop(gateway_id, None)

    def drop_replica(self, replica_id: str) -> None:
        """Removes all leases on a replica."""
        for gateway_id, tokens in tuple(self._tokens.get(replica_id, {}).items()):
            self._remove_all(gateway_id, [self._lease(gateway_id, lease_id, replica_id) for lease_id in tokens])

    def outstanding(self, replica_id: str) -> Outstanding:
        """Returns the sum of the leases on a replica."""
        return self._sums.get(replica_id, _NONE)

    def leases(self, gateway_id: str) -> tuple[Lease, ...]:
        """Returns all leases of a gateway."""
        mine = self._replica_ids.get(gateway_id, {})
        return tuple(self._lease(gateway_id, lease_id, replica_id) for lease_id, replica_id in mine.items())

    def requests(self, gateway_id: str) -> int:
        """Returns the number of leases of a gateway."""
        return len(self._replica_ids.get(gateway_id, {}))

    def __len__(self) -> int:
        return sum(len(leases) for leases in self._replica_ids.values())

    def _lease(self, gateway_id: str, lease_id: int, replica_id: str) -> Lease:
        cached = self._cached.get(gateway_id, {}).get(lease_id, 0)
        return Lease(lease_id, replica_id, self._tokens[replica_id][gateway_id][lease_id], cached)

    def _put_all(self, gateway_id: str, leases: Collection[Lease]) -> None:
        mine = self._replica_ids.setdefault(gateway_id, {})
        for lease in leases:
            mine[lease.lease_id] = lease.replica_id
            self._tokens.setdefault(lease.replica_id, {}).setdefault(gateway_id, {})[lease.lease_id] = lease.tokens
            if lease.cached_tokens:
                self._cached.setdefault(gateway_id, {})[lease.lease_id] = lease.cached_tokens
            self._count(lease, 1)
        self._report(leases)

    def _remove_all(self, gateway_id: str, leases: Collection[Lease]) -> None:
        for lease in leases:
            del self._replica_ids[gateway_id][lease.lease_id]
            on_replica = self._tokens[lease.replica_id]
            del on_replica[gateway_id][lease.lease_id]
            if lease.cached_tokens:
                del self._cached[gateway_id][lease.lease_id]
            if not on_replica[gateway_id]:
                del on_replica[gateway_id]
            self._count(lease, -1)
        self._report(leases)

    def _count(self, lease: Lease, sign: int) -> None:
        now = self.outstanding(lease.replica_id)
        self._sums[lease.replica_id] = Outstanding(now.requests + sign, now.tokens + sign * lease.uncached_tokens)

    def _report(self, leases: Iterable[Lease]) -> None:
        """Reports the new sums of the replicas that these leases name, and forgets replicas without leases."""
        for replica_id in {lease.replica_id for lease in leases}:
            if not self._tokens[replica_id]:
                del self._tokens[replica_id], self._sums[replica_id]
            self._on_change(replica_id, self.outstanding(replica_id))
