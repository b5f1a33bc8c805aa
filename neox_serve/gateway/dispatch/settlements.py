"""Batching of settlements, so that the leases or reservations that end in one turn of the event loop leave as one message."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Settlement = TypeVar("Settlement")


class SettlementBatcher(Generic[Settlement]):
    """Collects the settlements of one turn of the event loop and sends them together.

    send: sends one message with the given settlements, in order. It drops them if there is no router; that is safe, because the hello to
    the next router lists everything that is still open.
    """

    def __init__(self, send: Callable[[Sequence[Settlement]], None]) -> None:
        self._send = send
        self._settled: list[Settlement] = []

    def add(self, settlement: Settlement) -> None:
        """Queues a settlement. It is sent at the end of this turn of the event loop, unless `flush` sends it earlier."""
        if not self._settled:
            asyncio.get_running_loop().call_soon(self.flush)
        self._settled.append(settlement)

    def flush(self) -> None:
        """Sends what is queued now. Call it before a request that could use the capacity that was just released."""
        settled, self._settled = self._settled, []
        if settled:
            self._send(settled)

    def discard(self) -> None:
        """Drops what is queued. Call it when building a hello: the hello no longer lists what has been settled."""
        self._settled.clear()
