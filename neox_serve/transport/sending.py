"""The sending half of a connection. The frames of all calls are collected and written at once at the end of the event loop's turn.

A call is blocked while its stream's flow-control window, the connection's window or the socket's buffer is full. It continues when a
WINDOW_UPDATE or room in the buffer unblocks it.
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
from neox_serve.transport.peer_limits import PingLimit

_log = structlog.get_logger(__name__)

_WRITE_BUFFER_BYTES = 1 << 18
"""High-water mark of the socket's buffer."""
_MAX_UNREAD_BYTES = 1 << 20
"""Bytes that may be written while the buffer is full. Messages wait with their calls then, so these are replies to a client that sends
requests and does not read."""
_FRAME_HEADER = struct.Struct(">HBBBL")
"""Header of a frame: length (24 bits), type (0 for DATA), flags, stream id."""
_LINGER_S = 5.0
"""How long a status waits behind messages that the client does not read. Every byte that the client reads starts the time again."""


def tried(send: Callable[..., None], *arguments: Any, **options: Any) -> bool:
    """Calls a method of h2 for a stream and returns whether the stream still allowed it.

    The client may have reset the stream in bytes of the same read that are not processed yet. That is legal and affects no other stream.
    """
    try:
        send(*arguments, **options)
    except ProtocolError:
        return False
    return True


class Sending:
    """Sends the HEADERS and DATA of all calls of a connection."""

    def __init__(
        self,
        h2: H2Connection,
        ping_limit: PingLimit,
        *,
        on_answered: Callable[[ServerCall], None],
        on_gone: Callable[[ServerCall], None],
    ) -> None:
        """`on_answered` is called with a call whose status was sent, `on_gone` with a call whose stream was closed before that."""
        self._h2 = h2
        self._ping_limit = ping_limit
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
        """Sets the socket to write to."""
        self._transport = transport
        self.peer = str(transport.get_extra_info("peername"))
        self.certificate_names = names_in(transport.get_extra_info("peercert"))
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)

    # Used by calls

    def send_headers(self, call: ServerCall, headers: Headers, *, end: bool) -> None:
        """Sends HEADERS, which flow control does not limit."""
        if not tried(self._h2.send_headers, call.stream_id, headers, end_stream=end):
            self._on_gone(call)
        self._ping_limit.data_sent()
        self.flush_soon()

    def send_waiting(self, call: ServerCall) -> None:
        """Sends the call's unsent data as far as flow control allows, then its trailers. The rest follows when the call is unblocked."""
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

    # Used by the connection

    def reset(self, call: ServerCall) -> None:
        """Sends RST_STREAM unless the stream is closed: NO_ERROR after a status, CANCEL before."""
        answered = call.ended and call.trailers is None
        tried(self._h2.reset_stream, call.stream_id, ErrorCodes.NO_ERROR if answered else ErrorCodes.CANCEL)
        self._on_gone(call)
        self.flush_soon()

    def pause(self) -> None:
        """Stops sending DATA because the socket's buffer is full."""
        self._writable = False

    def resume(self) -> None:
        """Continues because the buffer has room again."""
        self._writable = True
        self._unread_bytes = 0
        self.unblock()

    def unblock(self) -> None:
        """Tries to send for every blocked call."""
        for call in tuple(self._blocked.values()):
            self.send_waiting(call)

    def unblock_stream(self, stream_id: int) -> None:
        """Tries to send for one blocked call."""
        if (call := self._blocked.get(stream_id)) is not None:
            self.send_waiting(call)

    def forget(self, stream_id: int) -> None:
        """Drops a call from the blocked ones."""
        self._blocked.pop(stream_id, None)
        self._end_lingering(stream_id)

    def flush_soon(self) -> None:
        """Writes all frames at the end of this turn of the event loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes all frames now. Aborts the connection if the client leaves too much unread."""
        self._flushing = False
        if self._transport is None or self._transport.is_closing() or not (data := self._take_frames()):
            return
        if not self._writable:
            self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_UNREAD_BYTES:
            _log.info("peer_does_not_read", peer=self.peer)
            self._transport.abort()
            return
        self._transport.write(data)

    def _take_frames(self) -> bytes:
        self._frames.append(self._h2.data_to_send())
        data = b"".join(self._frames)
        self._frames.clear()
        return data

    def _send_data(self, call: ServerCall) -> bool:
        """Queues DATA frames and returns whether anything could be queued. Raises ProtocolError if the stream or connection is closed.

        Most frames are DATA frames, and h2 needs a seventh of a token's time in the gateway to build one. They are therefore built here,
        and h2's flow-control windows updated. Frames that h2 has queued before are sent first, in their order.
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
            self._ping_limit.data_sent()
            self.flush_soon()
        return sent

    def _linger(self, call: ServerCall) -> None:
        self._end_lingering(call.stream_id)
        self._lingering[call.stream_id] = self._loop.call_later(_LINGER_S, self.reset, call)

    def _end_lingering(self, stream_id: int) -> None:
        if (timer := self._lingering.pop(stream_id, None)) is not None:
            timer.cancel()
