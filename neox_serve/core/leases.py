"""Who has claimed what: the leases of every gateway, and their sums by replica.

Invariants (held by property tests): a replica's sums equal the sums over the leases that name it; nothing is ever negative; settling a
lease twice, or one that is not there, changes nothing.
"""

from collections.abc import Iterable

from neox_serve.core.cluster import Lease, Outstanding

_NONE = Outstanding()


class LeaseBook:
    """Leases by gateway, with running sums by replica. A replica need not be known: gateways may report leases before it registers."""

    def __init__(self) -> None:
        self._by_gateway: dict[str, dict[int, Lease]] = {}
        self._by_replica: dict[str, Outstanding] = {}

    def add(self, gateway_id: str, lease: Lease) -> None:
        """Enters a lease; one with the same id is replaced."""
        self.remove(gateway_id, lease.lease_id)
        self._by_gateway.setdefault(gateway_id, {})[lease.lease_id] = lease
        self._count(lease, 1)

    def remove(self, gateway_id: str, lease_id: int) -> Lease | None:
        """Takes a lease out and returns it; None if it is not there."""
        lease = self._by_gateway.get(gateway_id, {}).pop(lease_id, None)
        if lease is not None:
            self._count(lease, -1)
        return lease

    def replace(self, gateway_id: str, leases: Iterable[Lease]) -> None:
        """Makes these the gateway's leases, instead of all it had."""
        self.drop_gateway(gateway_id)
        for lease in leases:
            self.add(gateway_id, lease)

    def drop_gateway(self, gateway_id: str) -> None:
        """Removes all leases of a gateway."""
        for lease in self._by_gateway.pop(gateway_id, {}).values():
            self._count(lease, -1)

    def drop_replica(self, replica_id: str) -> None:
        """Removes all leases on a replica."""
        if replica_id not in self._by_replica:
            return
        for gateway_id, leases in self._by_gateway.items():
            for lease_id in [lease.lease_id for lease in leases.values() if lease.replica_id == replica_id]:
                self.remove(gateway_id, lease_id)

    def outstanding(self, replica_id: str) -> Outstanding:
        """Claims on a replica, summed."""
        return self._by_replica.get(replica_id, _NONE)

    def leases(self, gateway_id: str) -> tuple[Lease, ...]:
        """All leases of a gateway."""
        return tuple(self._by_gateway.get(gateway_id, {}).values())

    def requests(self, gateway_id: str) -> int:
        """How many leases a gateway has."""
        return len(self._by_gateway.get(gateway_id, {}))

    def __len__(self) -> int:
        return sum(len(leases) for leases in self._by_gateway.values())

    def _count(self, lease: Lease, sign: int) -> None:
        now = self.outstanding(lease.replica_id)
        then = Outstanding(now.requests + sign, now.tokens + sign * lease.tokens)
        if then.requests:
            self._by_replica[lease.replica_id] = then
        else:
            del self._by_replica[lease.replica_id]
