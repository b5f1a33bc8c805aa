"""One call on the server: the context that its handler uses, and the data that waits for the client to read.

`write` returns once flow control has let its message pass, so the handler of a slow client waits, and newer output collects in the
handler. `put` does not wait. A handler that uses it must check `unsent`, so that little more than one message waits there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc

from neox_serve.transport.framing import Headers, Metadata, StatusError, framed, response_headers, status_headers

_MAX_WAITING_MESSAGES = 64
"""Request messages of one call that may wait for its handler."""


class AbortError(Exception):
    """Ends a handler whose call already has its status."""


class Stream(Protocol):
    """What a call needs from its connection."""

    @property
    def peer(self) -> str:
        """Address of the client."""

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Names in the client's certificate; empty if it presented none."""

    def send_headers(self, call: "ServerCall", headers: Headers, *, end: bool) -> None:
        """Sends HEADERS, which flow control does not limit."""

    def send_waiting(self, call: "ServerCall") -> None:
        """Sends the call's unsent data as far as flow control allows, and the rest later."""


class ServerCall:
    """One call of a client."""

    def __init__(self, *, stream: Stream, stream_id: int, path: str, metadata: Metadata, deadline_s: float | None) -> None:
        """`deadline_s` is a time on the event loop's clock, or None if the client set no deadline."""
        self.stream_id = stream_id
        self.path = path
        self.deadline_s = deadline_s
        self.task: asyncio.Task[None] | None = None
        self.unsent = b""
        """Framed data that waits for the client."""
        self.sent_bytes = 0
        """Bytes of `unsent` that have been sent."""
        self.trailers: Headers | None = None
        """Trailers that are sent once no data waits; None before the call ends and after they were sent."""
        self.serialize: Callable[[Any], bytes] | None = None
        """Serializes response messages; None if the handler writes bytes."""
        self._stream = stream
        self._metadata = metadata
        self._loop = asyncio.get_running_loop()
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._begun = False
        self._ended = False
        self._gone = False
        self._drained: asyncio.Future[None] | None = None

    # Used by handlers

    def time_remaining(self) -> float | None:
        """Returns the seconds left before the client's deadline, or None if it has none."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - self._loop.time())

    def invocation_metadata(self) -> Metadata:
        """Returns the metadata of the request."""
        return self._metadata

    def peer(self) -> str:
        """Returns the address of the client."""
        return self._stream.peer

    def certificate_names(self) -> tuple[str, ...]:
        """Returns the names in the client's verified certificate; empty if it presented none."""
        return self._stream.certificate_names

    def cancelled(self) -> bool:
        """Returns whether the client has cancelled the call or is gone."""
        return self._gone

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Sets the metadata that is sent with the status."""
        self._trailing = metadata

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Sends the HEADERS of the response with this metadata."""
        self._initial = metadata
        self._begin()

    async def write(self, message: Any) -> None:
        """Sends a message. Returns once flow control has let all of it pass."""
        self.put(message)
        if self.unsent:
            self._drained = self._loop.create_future()
            await self._drained

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """Ends the call with a status. Always raises AbortError."""
        self._trailing = trailing_metadata
        self.end(code, details)
        raise AbortError(code.name)

    # Used by the connection

    @property
    def ended(self) -> bool:
        """Whether the call has its status, which may still wait to be sent."""
        return self._ended

    def put(self, message: Any) -> None:
        """Sends a message without waiting, or appends it to the unsent data. Drops it if the call has ended or the client is gone."""
        if self._gone or self._ended:
            return
        self._begin()
        data = framed(message if self.serialize is None else self.serialize(message))
        if self.unsent:  # left by an earlier put, or by a write that was cancelled
            data = self.unsent[self.sent_bytes :] + data
        self.unsent, self.sent_bytes = data, 0
        self._stream.send_waiting(self)

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        """Ends the call with a status. Only the first one counts. Raises if the handler's metadata cannot be encoded."""
        if self._gone or self._ended:
            return
        trailers = status_headers(code, details, self._trailing)
        if not self._begun:
            trailers = response_headers(self._initial) + trailers
        self._begun = self._ended = True
        self.trailers = trailers
        self._stream.send_waiting(self)

    def all_sent(self) -> None:
        """Wakes the handler, because all its data has been sent."""
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def lose(self) -> None:
        """Cancels the handler and drops unsent data, because the client has cancelled the call or is gone."""
        self._gone = True
        self.unsent, self.trailers = b"", None
        self.cancel()

    def cancel(self) -> None:
        """Cancels the handler."""
        if self.task is not None:
            self.task.cancel()

    def _begin(self) -> None:
        if not (self._begun or self._gone or self._ended):
            self._begun = True
            self._stream.send_headers(self, response_headers(self._initial), end=False)


class Requests:
    """The request messages of a call."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(self, message: bytes | None) -> None:
        """Adds a message, or None at the end of the stream. Raises StatusError if too many messages wait."""
        if message is not None and self._messages.qsize() >= _MAX_WAITING_MESSAGES:
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WAITING_MESSAGES} request messages already wait for the handler")
        self._messages.put_nowait(message)

    async def only(self) -> bytes:
        """Returns the only message. Raises StatusError if there is none, or more than one."""
        message = await self._messages.get()
        if message is None or await self._messages.get() is not None:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "a unary call must have exactly one request message")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields every message until the end of the stream."""
        while (message := await self._messages.get()) is not None:
            yield message
