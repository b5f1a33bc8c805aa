"""Which gateway handles which request, by idempotency key, so that a retry at another gateway gets the response of the first one.

A gateway owns a request from its first admission until a fixed time after the request has ended, or until the gateway is lost.
"""

from dataclasses import dataclass

from neox_serve.core.cluster import RequestKey


@dataclass(slots=True)
class _Owned:
    """A request with an owner."""

    gateway_id: str
    expires_s: float | None = None
    """When the gateway forgets the response; None while the request runs."""


class RequestOwners:
    """The owners of all requests that have an idempotency key. memory_s: how long gateways keep the response of an ended request."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._owned: dict[str, _Owned] = {}
        self._by_lease: dict[RequestKey, str] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def claim(self, idempotency_key: str, gateway_id: str, lease_id: int, *, takes_over: bool) -> str | None:
        """Makes a gateway the owner of a request and returns None, or returns the id of the gateway that owns it already.

        takes_over: whether the present owner no longer knows the request; the gateway then becomes the owner in any case.
        """
        owned = self._owned.get(idempotency_key)
        if owned is not None and owned.gateway_id != gateway_id and not takes_over:
            return owned.gateway_id
        self._owned[idempotency_key] = _Owned(gateway_id)
        self._by_lease[gateway_id, lease_id] = idempotency_key
        return None

    def settle(self, gateway_id: str, lease_id: int, now_s: float) -> None:
        """Records the end of a request. Its owner keeps the response for memory_s."""
        idempotency_key = self._by_lease.pop((gateway_id, lease_id), None)
        owned = self._owned.get(idempotency_key) if idempotency_key is not None else None
        if owned is not None and owned.gateway_id == gateway_id:
            owned.expires_s = now_s + self._memory_s

    def drop_gateway(self, gateway_id: str) -> None:
        """Forgets the requests of a gateway that is lost, because its responses are lost too."""
        self._owned = {key: owned for key, owned in self._owned.items() if owned.gateway_id != gateway_id}
        self._by_lease = {key: idempotency_key for key, idempotency_key in self._by_lease.items() if key[0] != gateway_id}

    def expire(self, now_s: float) -> None:
        """Forgets requests whose owner no longer keeps the response."""
        gone = [key for key, owned in self._owned.items() if owned.expires_s is not None and owned.expires_s <= now_s]
        for key in gone:
            del self._owned[key]
