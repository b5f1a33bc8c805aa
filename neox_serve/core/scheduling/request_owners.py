"""Which gateway answers which request, by the id that its client gave: a repeat that comes to another gateway is sent to that one's answer.

A request is owned from its first admission, for as long as it runs and a memory's time after, unless its gateway goes.
"""

from dataclasses import dataclass

from neox_serve.core.cluster import RequestKey


@dataclass(slots=True)
class _Owned:
    gateway_id: str
    ends_s: float | None = None


class RequestOwners:
    """Owners of all requests that have an id. memory_s: how long a gateway remembers its answers."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._owned: dict[str, _Owned] = {}
        self._by_lease: dict[RequestKey, str] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def claim(self, idempotency_key: str, gateway_id: str, lease_id: int, *, takes_over: bool) -> str | None:
        """Makes a gateway the owner of a request, or returns the gateway that is. takes_over: that one no longer knows of it."""
        owned = self._owned.get(idempotency_key)
        if owned is not None and owned.gateway_id != gateway_id and not takes_over:
            return owned.gateway_id
        self._owned[idempotency_key] = _Owned(gateway_id)
        self._by_lease[gateway_id, lease_id] = idempotency_key
        return None

    def settle(self, gateway_id: str, lease_id: int, now_s: float) -> None:
        """A request has ended; its answer is remembered for some time."""
        idempotency_key = self._by_lease.pop((gateway_id, lease_id), None)
        owned = self._owned.get(idempotency_key) if idempotency_key is not None else None
        if owned is not None and owned.gateway_id == gateway_id:
            owned.ends_s = now_s + self._memory_s

    def drop_gateway(self, gateway_id: str) -> None:
        """A gateway is gone, and its answers with it."""
        self._owned = {key: owned for key, owned in self._owned.items() if owned.gateway_id != gateway_id}
        self._by_lease = {key: idempotency_key for key, idempotency_key in self._by_lease.items() if key[0] != gateway_id}

    def expire(self, now_s: float) -> None:
        """Forgets requests whose answers are no longer remembered."""
        gone = [key for key, owned in self._owned.items() if owned.ends_s is not None and owned.ends_s <= now_s]
        for key in gone:
            del self._owned[key]
