"""What the asyncio client needs of grpc: a channel, unary calls, response streams and a clock to wait on.

`sync_transport` has the same names without "Async" for the blocking client. These two modules are the only ones written twice: the
clients themselves differ only in `async` and `await`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from neox_serve.client.calls import ApiCall
from neox_serve.client.connection import Tls

sleep = asyncio.sleep


class AsyncTransport:
    """The connection to a gateway. It opens its channel at the first call, since a channel belongs to the event loop that runs then."""

    def __init__(self, address: str, tls: Tls | None, options: list[tuple[str, str | int]], metadata: tuple[tuple[str, str], ...]) -> None:
        self._address, self._tls, self._options, self._metadata = address, tls, options, metadata
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[Callable[[Any], Any], Any] = {}

    async def unary(self, call: ApiCall[Any], timeout_s: float | None) -> Message:
        """Sends the request and returns the response message. Raises grpc.RpcError."""
        response: Message = await self._start(call, timeout_s)
        return response

    def stream(self, call: ApiCall[Any], timeout_s: float | None) -> "AsyncResponseStream":
        """Sends the request; its response messages are read from the result."""
        return AsyncResponseStream(self._start(call, timeout_s))

    async def close(self) -> None:
        """Closes the channel, which cancels all calls."""
        if self._channel is not None:
            await self._channel.close()

    def _start(self, call: ApiCall[Any], timeout_s: float | None) -> Any:
        if self._channel is None:
            self._channel = self._connect()
        if call.stub not in self._stubs:
            self._stubs[call.stub] = call.stub(self._channel)
        return getattr(self._stubs[call.stub], call.method)(call.request, timeout=timeout_s, metadata=self._metadata)

    def _connect(self) -> grpc.aio.Channel:
        if self._tls:
            return grpc.aio.secure_channel(self._address, self._tls.credentials(), self._options)
        return grpc.aio.insecure_channel(self._address, self._options)


class AsyncResponseStream:
    """The response messages of one call."""

    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc
        self.cancelled = False
        """Whether the call was cancelled on this side, by `cancel` or because the reading task was cancelled."""

    async def read(self) -> Any:
        """The next message; None at the end, and after `cancel`. Raises grpc.RpcError if the call fails."""
        try:
            message = await self._rpc.read()
        except asyncio.CancelledError:
            if self.cancelled and not _is_current_task_cancelled():
                return None
            self.cancel()
            raise
        return None if message is grpc.aio.EOF else message

    def cancel(self) -> None:
        """Cancels the call unless it has ended. Another task's `read` then returns None."""
        self.cancelled = True
        self._rpc.cancel()


def _is_current_task_cancelled() -> bool:
    """grpc raises CancelledError in the reader of a call that another task cancels, just as the cancellation of the reader's own task does.

    Python 3.10 cannot tell the two apart; there, the call's own cancellation is taken as the cause.
    """
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0
