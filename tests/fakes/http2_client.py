"""An HTTP/2 client and a socket in memory, which drive a connection of the transport without a network."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import grpc
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from neox_serve.transport.connection import Connection, FindHandler, Limits
from neox_serve.transport.framing import StatusError, framed

HEADERS = ((":method", "POST"), (":scheme", "http"), (":authority", "test"), ("content-type", "application/grpc"), ("te", "trailers"))


def finder(handlers: Mapping[str, Any]) -> FindHandler:
    """Handlers by path."""

    def find(path: str) -> Any:
        if path not in handlers:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, path)
        return handlers[path]

    return find


class FakeSocket(asyncio.Transport):
    """A transport that keeps what is written, one entry for each write. `extra` is its extra info."""

    def __init__(self, extra: Mapping[str, Any]) -> None:
        super().__init__(dict(extra))
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As much as there is."""


class Http2Client:
    """The client of one connection. `window_bytes` is the window of each stream, `extra` the extra info of the server's socket."""

    def __init__(self, find_handler: FindHandler, *, limits: Limits, window_bytes: int = 65_535, **extra: Any) -> None:
        self.socket = FakeSocket(extra)
        self.closed: list[Connection] = []
        self.events: list[events.Event] = []
        self.connection = Connection(limits=limits, find_handler=find_handler, on_open=lambda _: None, on_closed=self.closed.append)
        self.connection.connection_made(self.socket)
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window_bytes})
        self.h2.initiate_connection()
        self._taken = 0

    def open(self, path: str, *more: tuple[str, str], message: bytes | None = b"", end: bool = True, **changed: str) -> int:
        """Begins a call, optionally with one message, and returns its stream id. `changed` replaces headers, such as method."""
        stream_id = self.h2.get_next_available_stream_id()
        headers = [(name, changed.get(name.strip(":").replace("-", "_"), value)) for name, value in HEADERS]
        self.h2.send_headers(stream_id, [*headers[:3], (":path", path), *headers[3:], *more], end_stream=message is None and end)
        if message is not None:
            self.h2.send_data(stream_id, framed(message), end_stream=end)
        return stream_id

    def send(self) -> None:
        """Passes everything that the client has queued to the server, in one read."""
        if data := self.h2.data_to_send():
            self.connection.data_received(data)

    async def exchange(self, turns: int = 6) -> None:
        """Sends, lets the event loop run, and receives what the server has written."""
        if not self.socket.closed:
            self.send()
        for _ in range(turns):
            await asyncio.sleep(0)
        for data in self.socket.writes[self._taken :]:
            self.events += self.h2.receive_data(data)
        self._taken = len(self.socket.writes)

    def lose(self) -> None:
        """Breaks the connection."""
        self.socket.closed = True
        self.connection.connection_lost(None)

    def data(self, stream_id: int) -> bytes:
        """Returns the contents of all DATA frames of a stream."""
        found = [event for event in self.events if isinstance(event, events.DataReceived) and event.stream_id == stream_id]
        return b"".join(event.data or b"" for event in found)

    def headers(self, stream_id: int) -> dict[str, str]:
        """Returns the headers and trailers of a stream."""
        kinds = (events.ResponseReceived, events.TrailersReceived)
        found = [event for event in self.events if isinstance(event, kinds) and event.stream_id == stream_id]
        pairs = [cast("tuple[Any, Any]", pair) for event in found for pair in event.headers or ()]
        return {_text(key): _text(value) for key, value in pairs}

    def status(self, stream_id: int) -> str | None:
        """Returns the status number of a stream, or None if there is none yet."""
        return self.headers(stream_id).get("grpc-status")

    def reset_code(self, stream_id: int) -> Any:
        """Returns the code with which the server has reset a stream, or None if it has not."""
        resets = (event for event in self.events if isinstance(event, events.StreamReset) and event.stream_id == stream_id)
        return next((event.error_code for event in resets), None)

    def goaway_codes(self) -> list[Any]:
        """Returns the codes of the server's GOAWAY frames."""
        return [event.error_code for event in self.events if isinstance(event, events.ConnectionTerminated)]

    def nothing_left(self) -> bool:
        """Returns whether the connection holds no call."""
        connection, sending = self.connection, self.connection._sending
        parts = (connection._calls, connection._incoming, sending._blocked, sending._lingering)
        return not any(parts)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
