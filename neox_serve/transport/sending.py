"""The sending half of a connection: frames of all calls gather and leave in one write, at the end of the loop's turn.

Where a stream's window, the connection's or the socket's buffer is full, the call stays among the blocked ones and goes on when that
changes.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import structlog
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError, StreamClosedError

from neox_serve.transport.call import ServerCall
from neox_serve.transport.certificates import names_in
from neox_serve.transport.framing import Headers
from neox_serve.transport.pings import Pings

_log = structlog.get_logger(__name__)

_WRITE_BUFFER_BYTES = 1 << 18
# How much may wait in a full buffer besides messages, which then wait with their calls: answers to a client that asks and does not read.
_MAX_UNREAD_BYTES = 1 << 20
# Length (24 bits), type (0: DATA), flags, stream.
_FRAME_HEADER = struct.Struct(">HBBBL")
# How long a status waits for a client that takes nothing of what is before it.
_LINGER_S = 5.0


def tried(send: Callable[..., None], *arguments: Any, **options: Any) -> bool:
    """Calls a method of h2 for a stream; whether it could. The client may have reset the stream in bytes that came in the same read and
    are not handled yet, which is its right and concerns no other stream."""
    try:
        send(*arguments, **options)
    except ProtocolError:
        return False
    return True


class Sending:
    """What calls send. on_answered: gets a call whose status has gone; on_gone: one whose stream takes nothing more."""

    def __init__(
        self, h2: H2Connection, pings: Pings, *, on_answered: Callable[[ServerCall], None], on_gone: Callable[[ServerCall], None]
    ) -> None:
        self._h2 = h2
        self._pings = pings
        self._on_answered = on_answered
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames: list[bytes] = []
        self._blocked: dict[int, ServerCall] = {}
        self._lingering: dict[int, asyncio.TimerHandle] = {}
        self._writable = True
        self._flushing = False
        self._unread_bytes = 0
        self.peer = ""
        self.certificate_names: tuple[str, ...] = ()

    def attach(self, transport: asyncio.Transport) -> None:
        """The socket that takes it all."""
        self._transport = transport
        self.peer = str(transport.get_extra_info("peername"))
        self.certificate_names = names_in(transport.get_extra_info("peercert"))
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)

    # What calls use

    def send_headers(self, call: ServerCall, headers: Headers, *, end: bool) -> None:
        """Sends a block of headers, which no window bounds."""
        if not tried(self._h2.send_headers, call.stream_id, headers, end_stream=end):
            self._on_gone(call)
        self._pings.sent()
        self.flush_soon()

    def send_waiting(self, call: ServerCall) -> None:
        """Sends what waits, as far as the client lets it; the rest when it does."""
        try:
            sent = self._send_data(call)
        except ProtocolError:
            self._on_gone(call)
            return
        if call.unsent:
            self._blocked[call.stream_id] = call
            if call.ended and (sent or call.stream_id not in self._lingering):
                self._linger(call)
            return
        self._blocked.pop(call.stream_id, None)
        call.all_sent()
        if call.trailers is not None:
            trailers, call.trailers = call.trailers, None
            self.send_headers(call, trailers, end=True)
            self.forget(call.stream_id)
            self._on_answered(call)

    # What the connection uses

    def reset(self, call: ServerCall) -> None:
        """Tells the client that the stream is over, if it is not."""
        answered = call.ended and call.trailers is None
        tried(self._h2.reset_stream, call.stream_id, ErrorCodes.NO_ERROR if answered else ErrorCodes.CANCEL)
        self._on_gone(call)
        self.flush_soon()

    def pause(self) -> None:
        """The socket's buffer is full."""
        self._writable = False

    def resume(self) -> None:
        """It has room again."""
        self._writable = True
        self._unread_bytes = 0
        self.unblock()

    def unblock(self) -> None:
        """There may be room for any of the blocked calls."""
        for call in tuple(self._blocked.values()):
            self.send_waiting(call)

    def unblock_stream(self, stream_id: int) -> None:
        """There may be room for one of them."""
        if (call := self._blocked.get(stream_id)) is not None:
            self.send_waiting(call)

    def forget(self, stream_id: int) -> None:
        """Nothing more is sent for a call."""
        self._blocked.pop(stream_id, None)
        self._end_lingering(stream_id)

    def flush_soon(self) -> None:
        """Writes at the end of this turn."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what there is. Drops a client that lets too much of it lie."""
        self._flushing = False
        if self._transport is None or self._transport.is_closing() or not (data := self._take_frames()):
            return
        if not self._writable:
            self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_UNREAD_BYTES:
            _log.info("client does not read its answers", peer=self.peer)
            self._transport.abort()
            return
        self._transport.write(data)

    def _take_frames(self) -> bytes:
        self._frames.append(self._h2.data_to_send())
        data = b"".join(self._frames)
        self._frames.clear()
        return data

    def _send_data(self, call: ServerCall) -> bool:
        """Whether anything could go. Raises ProtocolError where the stream or the connection is over.

        DATA frames are most of what is sent, and h2 takes a seventh of a token's way through a gateway for one; so they are made here, and
        h2's windows kept. What h2 has to say goes before them, as it was said.
        """
        connection, data, sent = self._h2, call.unsent, False
        stream = connection.streams.get(call.stream_id)
        if stream is None or stream.closed or connection.state_machine.state is ConnectionState.CLOSED:
            raise StreamClosedError(call.stream_id)
        while data and self._writable:
            windows = connection.outbound_flow_control_window, stream.outbound_flow_control_window
            room = min(*windows, connection.max_outbound_frame_size)
            if room <= 0:
                break
            part = data[call.sent_bytes : call.sent_bytes + room]
            size = len(part)
            connection.outbound_flow_control_window -= size
            stream.outbound_flow_control_window -= size
            self._frames += (connection.data_to_send(), _FRAME_HEADER.pack(size >> 8, size & 0xFF, 0, 0, call.stream_id), part)
            call.sent_bytes += size
            sent = True
            if call.sent_bytes == len(data):
                data = call.unsent = b""
        if sent:
            self._pings.sent()
            self.flush_soon()
        return sent

    def _linger(self, call: ServerCall) -> None:
        self._end_lingering(call.stream_id)
        self._lingering[call.stream_id] = self._loop.call_later(_LINGER_S, self.reset, call)

    def _end_lingering(self, stream_id: int) -> None:
        if (timer := self._lingering.pop(stream_id, None)) is not None:
            timer.cancel()
