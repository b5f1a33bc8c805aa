"""One call on its server: what its handler knows as the context, and what of it waits for the client to read.

`write` returns once its message has been taken by HTTP/2, so that a handler whose client reads slowly waits, and what comes meanwhile
gathers with the handler. `put` does not wait: who uses it sees to it that little more than a message waits in `unsent`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc

from neox_serve.transport.framing import Headers, Metadata, StatusError, framed, response_headers, status_headers

_MAX_WAITING_MESSAGES = 64


class AbortError(Exception):
    """Ends a handler whose call has its status already."""


class Stream(Protocol):
    """A call's stream, as its connection has it."""

    @property
    def peer(self) -> str:
        """The client's address."""

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Names in the certificate that the client has shown; none where it has shown none."""

    def send_headers(self, call: "ServerCall", headers: Headers, *, end: bool) -> None:
        """Sends a block of headers, which no window bounds."""

    def send_waiting(self, call: "ServerCall") -> None:
        """Sends what waits, as far as the client lets it; the rest when it does."""


class ServerCall:
    """A call. deadline_s: of the loop's clock; None: none. unsent: what waits for the client; sent_bytes: how much of it has gone."""

    def __init__(self, *, stream: Stream, stream_id: int, path: str, metadata: Metadata, deadline_s: float | None) -> None:
        self.stream_id = stream_id
        self.path = path
        self.deadline_s = deadline_s
        self.task: asyncio.Task[None] | None = None
        self.unsent = b""
        self.sent_bytes = 0
        self.trailers: Headers | None = None
        self.serialize: Callable[[Any], bytes] | None = None
        self._stream = stream
        self._metadata = metadata
        self._loop = asyncio.get_running_loop()
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._begun = False
        self._ended = False
        self._gone = False
        self._drained: asyncio.Future[None] | None = None

    # What handlers use

    def time_remaining(self) -> float | None:
        """Seconds to the client's deadline; None where it has none."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - self._loop.time())

    def invocation_metadata(self) -> Metadata:
        """What the client sent along."""
        return self._metadata

    def peer(self) -> str:
        """The client's address."""
        return self._stream.peer

    def certificate_names(self) -> tuple[str, ...]:
        """Names in the certificate that the client has shown and that was verified; none where it has shown none."""
        return self._stream.certificate_names

    def cancelled(self) -> bool:
        """Whether the client has given up or is gone."""
        return self._gone

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """What goes with the status."""
        self._trailing = metadata

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Begins the answer."""
        self._initial = metadata
        self._begin()

    async def write(self, message: Any) -> None:
        """Sends a message; returns once the client's window has room for all of it."""
        self.put(message)
        if self.unsent:
            self._drained = self._loop.create_future()
            await self._drained

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """Ends the call with a status. Raises AbortError, always."""
        self._trailing = trailing_metadata
        self.end(code, details)
        raise AbortError(code.name)

    # What the connection uses

    @property
    def ended(self) -> bool:
        """Whether the call has its status, be it sent or waiting."""
        return self._ended

    def put(self, message: Any) -> None:
        """Sends a message or lets it wait. What the client will not get is dropped."""
        if self._gone or self._ended:
            return
        self._begin()
        data = framed(message if self.serialize is None else self.serialize(message))
        if self.unsent:  # of a message that was put, or whose write was cancelled
            data = self.unsent[self.sent_bytes :] + data
        self.unsent, self.sent_bytes = data, 0
        self._stream.send_waiting(self)

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        """Ends the call with a status, once: the first one counts. Raises where the handler's metadata cannot be sent."""
        if self._gone or self._ended:
            return
        trailers = status_headers(code, details, self._trailing)
        if not self._begun:
            trailers = response_headers(self._initial) + trailers
        self._begun = self._ended = True
        self.trailers = trailers
        self._stream.send_waiting(self)

    def all_sent(self) -> None:
        """Nothing waits any more."""
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def lose(self) -> None:
        """The client has given up or is gone: nothing more is sent, and the handler is cancelled."""
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
    """The messages of a call, for handlers that take a stream of them."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(self, message: bytes | None) -> None:
        """A message; None: there are no more. Raises StatusError where too many wait."""
        if message is not None and self._messages.qsize() >= _MAX_WAITING_MESSAGES:
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WAITING_MESSAGES} request messages wait already")
        self._messages.put_nowait(message)

    async def one(self) -> bytes:
        """The only message. Raises StatusError where there is none, or more."""
        message = await self._messages.get()
        if message is None or await self._messages.get() is not None:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "exactly one request message is expected")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            yield message
