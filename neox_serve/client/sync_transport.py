"""The blocking counterpart of `async_transport`: the same names without "Async", for the client that is generated from the asyncio one."""

import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from neox_serve.client.calls import ApiCall
from neox_serve.client.connection import Tls

sleep = time.sleep


class Transport:
    """The connection to a gateway. It may be shared between threads."""

    def __init__(self, address: str, tls: Tls | None, options: list[tuple[str, str | int]], metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = grpc.secure_channel(address, tls.credentials(), options) if tls else grpc.insecure_channel(address, options)
        self._metadata = metadata
        self._stubs: dict[Callable[[Any], Any], Any] = {}

    def unary(self, call: ApiCall[Any], timeout_s: float | None) -> Message:
        """Sends the request and returns the response message. Raises grpc.RpcError."""
        rpc = self._method(call).future(call.request, timeout=timeout_s, metadata=self._metadata)
        try:
            response: Message = rpc.result()
        finally:
            rpc.cancel()  # ends the call if an exception such as KeyboardInterrupt was raised here; otherwise it has ended
        return response

    def stream(self, call: ApiCall[Any], timeout_s: float | None) -> "ResponseStream":
        """Sends the request; its response messages are read from the result."""
        return ResponseStream(self._method(call)(call.request, timeout=timeout_s, metadata=self._metadata))

    def close(self) -> None:
        """Closes the channel, which cancels all calls."""
        self._channel.close()

    def _method(self, call: ApiCall[Any]) -> Any:
        if call.stub not in self._stubs:
            self._stubs[call.stub] = call.stub(self._channel)
        return getattr(self._stubs[call.stub], call.method)


class ResponseStream:
    """The response messages of one call."""

    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc
        self.cancelled = False
        """Whether the call was cancelled on this side."""

    def read(self) -> Any:
        """The next message; None at the end, and after `cancel`. Raises grpc.RpcError if the call fails."""
        try:
            return next(self._rpc, None)
        except grpc.RpcError:
            if self.cancelled:
                return None
            raise

    def cancel(self) -> None:
        """Cancels the call unless it has ended. Another thread's `read` then returns None."""
        self.cancelled = True
        self._rpc.cancel()
