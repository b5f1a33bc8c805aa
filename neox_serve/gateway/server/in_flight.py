"""The calls in flight that count against the concurrency limit."""

import asyncio
from collections.abc import Iterator

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server.calls import Call

OVERLOADED_RETRY_S = 1.0
"""Under a load that fills a gateway, half the calls in flight end within about this time. Earlier retries would mostly be refused."""
DRAINING_RETRY_S = 0.5
"""Another gateway can be tried at once. The pause keeps all clients from doing so at the same instant."""


class CallsInFlight:
    """Admits calls up to a limit, and none while the gateway drains."""

    def __init__(self, max_concurrent_requests: int) -> None:
        self._max = max_concurrent_requests
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls))

    def enter(self, call: Call) -> None:
        """Adds a call. Raises DRAINING while the gateway drains, OVERLOADED if the limit is reached."""
        if self.draining:
            raise draining_error()
        if len(self._calls) >= self._max:
            message = f"{len(self._calls)} requests are in flight, and this gateway allows {self._max}"
            raise ServeError(Reason.OVERLOADED, message, {"max_concurrent_requests": str(self._max)}, OVERLOADED_RETRY_S)
        self._calls.add(call)
        self._idle.clear()

    def leave(self, call: Call) -> None:
        """Removes a call. Has no effect if it was not added."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()


def draining_error() -> ServeError:
    """Returns the error of a call that arrives while the gateway drains."""
    return ServeError(Reason.DRAINING, "this gateway is shutting down", retry_after_s=DRAINING_RETRY_S)
