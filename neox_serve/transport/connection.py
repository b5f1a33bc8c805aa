"""One client's connection: HTTP/2 by h2, one call per stream.

Theory of operation: everything happens on one event loop, and nothing here waits. Received bytes become h2 events, and these become request
messages of calls. Calls pass their HEADERS and DATA to the connection's `Sending`, which writes them at the end of the loop's turn.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import structlog
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from neox_serve.transport.call import Requests, ServerCall
from neox_serve.transport.framing import MessageReader, StatusError, metadata_of, response_headers, status_headers, timeout_s
from neox_serve.transport.handling import handle
from neox_serve.transport.peer_limits import ControlFrameLimit, Keepalive, KeepaliveAction, PingLimit
from neox_serve.transport.sending import Sending, tried

_log = structlog.get_logger(__name__)

_STREAM_WINDOW_BYTES = 1 << 20
"""Flow-control window of each stream for request messages."""
_CONNECTION_WINDOW_BYTES = 1 << 24
"""Flow-control window of the connection."""
_PART_BYTES = 1 << 14
"""Received data is processed in parts of this size, and limits are checked in between: h2 needs 1.5 s for 256 KiB of reset requests."""
_PREFACE_TIMEOUT_S = 10.0
"""Time in which a client must send the connection preface."""
_REQUEST_TIMEOUT_S = 60.0
"""Time in which a client must send the whole message of a request that it has begun."""
_DEADLINE_GRACE_S = 0.05
"""Handlers that observe the deadline give better errors, so the transport ends a call only this long after its deadline."""

FindHandler = Callable[[str], "grpc.RpcMethodHandler[Any, Any]"]
"""Returns the handler of a path. Raises StatusError if there is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may use, and when it counts as dead."""

    max_message_bytes: int
    """Largest request message, before and after decompression."""
    max_streams: int
    """Streams that may be open at the same time (SETTINGS_MAX_CONCURRENT_STREAMS)."""
    max_header_bytes: int = 16_384
    """Largest header list of a request."""
    keepalive_s: float = 20.0
    """A client that has sent nothing for this long gets a PING."""
    keepalive_timeout_s: float = 10.0
    """The connection is aborted if the PING is not answered within this time."""
    min_ping_interval_s: float = 4.5
    """A client that sends PINGs more often than this, while nothing is sent to it, gets a GOAWAY."""


@dataclass(slots=True)
class _Incoming:
    """A call whose request has not been received completely."""

    call: ServerCall
    """The call."""
    reader: MessageReader
    """Assembles messages from DATA frames."""
    requests: Requests
    """Receives the messages for the handler."""
    timer: asyncio.TimerHandle | None
    """Resets the stream if the request takes too long; None for a stream of requests."""


class Connection(asyncio.Protocol):
    """An HTTP/2 connection with a client."""

    def __init__(
        self,
        *,
        limits: Limits,
        find_handler: FindHandler,
        on_open: Callable[["Connection"], None],
        on_closed: Callable[["Connection"], None],
    ) -> None:
        """`on_open` is called once the connection speaks HTTP/2, `on_closed` once when it has ended."""
        self._limits = limits
        self._find_handler = find_handler
        self._on_open = on_open
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False))
        self._ping_limit = PingLimit(limits.min_ping_interval_s)
        self._sending = Sending(self._h2, self._ping_limit, on_answered=self._answered, on_gone=self._forget)
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, ServerCall] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._closing = False
        self._known_stream_id = 0
        self._control_frame_limit = ControlFrameLimit()
        self._keepalive = Keepalive()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def calls(self) -> int:
        """Number of calls whose handler runs or whose status has not been sent."""
        return len(self._calls)

    # Socket events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the connection preface. Aborts a TLS connection that did not negotiate h2."""
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            cast("asyncio.Transport", transport).abort()
            return
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not of asyncio's class
        self._sending.attach(self._transport)
        self._on_open(self)
        self._send_preface()
        self._timer = self._loop.call_later(_PREFACE_TIMEOUT_S, self._check_alive)

    def _send_preface(self) -> None:
        max_header_bytes = self._limits.max_header_bytes
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: max_header_bytes,
            },
        )
        self._h2.decoder.max_header_list_size = max_header_bytes
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES)
        self._sending.flush_soon()

    def data_received(self, data: bytes) -> None:
        """Processes received bytes. A client that violates HTTP/2 gets a GOAWAY and loses its connection."""
        self._keepalive.data_received()
        for start in range(0, len(data), _PART_BYTES):
            self._receive_part(data[start : start + _PART_BYTES])
        self._sending.flush_soon()

    def _receive_part(self, part: bytes) -> None:
        if self._is_over():
            return
        self._known_stream_id = self._h2.highest_inbound_stream_id
        try:
            received = self._h2.receive_data(part)
        except ProtocolError as error:
            _log.info("http2_protocol_error", peer=self._sending.peer, error=str(error))
            self._close()
            return
        for event in received:
            if (on_event := _EVENT_HANDLERS.get(type(event))) is not None and not self._is_over():
                on_event(self, event)

    def pause_writing(self) -> None:
        """Stops writing because the socket's buffer is full."""
        self._sending.pause()

    def resume_writing(self) -> None:
        """Continues writing because the buffer has room again."""
        self._sending.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the calls that still run."""
        if self._timer is not None:
            self._timer.cancel()
        for call in tuple(self._calls.values()):
            self._forget(call)
        self._on_closed(self)

    # The end of a call

    def _answered(self, call: ServerCall) -> None:
        """Forgets a call whose status has been sent. If its request is incomplete, resets the stream, because the rest is not needed."""
        self._calls.pop(call.stream_id, None)
        if self._end_incoming(call.stream_id):
            self._sending.reset(call)

    def _forget(self, call: ServerCall) -> None:
        self._calls.pop(call.stream_id, None)
        self._end_incoming(call.stream_id)
        self._sending.forget(call.stream_id)
        call.lose()

    def _end_incoming(self, stream_id: int) -> _Incoming | None:
        incoming = self._incoming.pop(stream_id, None)
        if incoming is not None and incoming.timer is not None:
            incoming.timer.cancel()
        return incoming

    # HTTP/2 events

    def _on_request(self, event: events.RequestReceived) -> None:
        headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in event.headers]
        fields = dict(headers)
        stream_id = event.stream_id
        if self._closing:
            tried(self._h2.reset_stream, stream_id, ErrorCodes.REFUSED_STREAM)
        elif fields.get(":method") != "POST" or not fields.get("content-type", "").startswith("application/grpc"):
            tried(self._h2.send_headers, stream_id, [(b":status", b"415")], end_stream=True)
        else:
            self._begin(stream_id, headers, fields)

    def _begin(self, stream_id: int, headers: list[tuple[str, str]], fields: dict[str, str]) -> None:
        try:
            path, now_s = fields[":path"], self._loop.time()
            deadline_s = now_s + timeout_s(fields["grpc-timeout"]) if "grpc-timeout" in fields else None
            call = ServerCall(stream=self._sending, stream_id=stream_id, path=path, metadata=metadata_of(headers), deadline_s=deadline_s)
            handler = self._find_handler(path)
        except StatusError as error:
            answer = response_headers() + status_headers(error.code, error.details)
            tried(self._h2.send_headers, stream_id, answer, end_stream=True)
            return
        requests = Requests()
        reader = MessageReader(self._limits.max_message_bytes, fields.get("grpc-encoding", "identity"))
        self._calls[stream_id] = call
        timer = None if handler.request_streaming else self._loop.call_later(_REQUEST_TIMEOUT_S, self._sending.reset, call)
        self._incoming[stream_id] = _Incoming(call, reader, requests, timer)
        call.task = self._loop.create_task(handle(call, requests, handler))
        if deadline_s is not None:
            deadline_timer = self._loop.call_at(deadline_s + _DEADLINE_GRACE_S, call.cancel)
            call.task.add_done_callback(lambda _: deadline_timer.cancel())

    def _on_data(self, event: events.DataReceived) -> None:
        tried(self._h2.acknowledge_received_data, event.flow_controlled_length, event.stream_id)
        incoming = self._incoming.get(event.stream_id)
        if incoming is None or incoming.call.ended:
            return
        try:
            for message in incoming.reader.feed(event.data):
                incoming.requests.put(message)
        except StatusError as error:
            incoming.call.end(error.code, error.details)
            incoming.call.cancel()

    def _on_end(self, event: events.StreamEnded) -> None:
        incoming = self._end_incoming(event.stream_id)
        if incoming is None:
            return
        if incoming.reader.in_message:
            incoming.call.end(grpc.StatusCode.INTERNAL, "the request stream ended in the middle of a message")
            incoming.call.cancel()
        incoming.requests.put(None)

    def _on_reset(self, event: events.StreamReset) -> None:
        if (call := self._calls.get(event.stream_id)) is not None:
            self._forget(call)
        if event.stream_id > self._known_stream_id:
            self._count_control_frame()

    def _on_window(self, event: events.WindowUpdated) -> None:
        if event.stream_id == 0:
            self._sending.unblock()
        else:
            self._sending.unblock_stream(event.stream_id)

    def _on_settings(self, _event: events.RemoteSettingsChanged) -> None:
        self._sending.unblock()
        self._count_control_frame()

    def _on_ping(self, _event: events.PingReceived) -> None:
        if self._ping_limit.exceeded_by_ping(self._loop.time()):
            self._reject_peer(b"too_many_pings")

    def _count_control_frame(self) -> None:
        if self._control_frame_limit.exceeded_by_frame(self._loop.time()):
            self._reject_peer(b"too_many_settings_or_resets")

    # The end of the connection

    def refuse_new(self) -> None:
        """Answers streams that are opened from now on with REFUSED_STREAM, so that clients retry them on another connection."""
        self._closing = True

    def close(self) -> None:
        """Cancels all calls, sends GOAWAY and closes the connection."""
        for call in tuple(self._calls.values()):
            call.cancel()
        self._close(ErrorCodes.NO_ERROR)

    def abort(self) -> None:
        """Closes the socket at once, without a GOAWAY."""
        if self._transport is not None:
            self._transport.abort()

    def _check_alive(self) -> None:
        action = self._keepalive.check()
        if action is KeepaliveAction.DROP or (action is KeepaliveAction.PING and not tried(self._h2.ping, b"keepaliv")):
            self.abort()
            return
        self._sending.flush_soon()
        wait_s = self._limits.keepalive_s if action is KeepaliveAction.WAIT else self._limits.keepalive_timeout_s
        self._timer = self._loop.call_later(wait_s, self._check_alive)

    def _is_over(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _reject_peer(self, reason: bytes) -> None:
        _log.info("peer_limit_exceeded", peer=self._sending.peer, reason=reason.decode())
        self._close(ErrorCodes.ENHANCE_YOUR_CALM, reason)

    def _close(self, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR, reason: bytes | None = None) -> None:
        """Sends GOAWAY, which h2 has already queued after a protocol error, and closes the connection."""
        try:
            if code is not ErrorCodes.PROTOCOL_ERROR:
                self._h2.close_connection(code, reason)
        except ProtocolError:
            _log.debug("connection_already_closed", peer=self._sending.peer)
        self._sending.flush()
        if self._transport is not None:
            self._transport.close()


_EVENT_HANDLERS: dict[type, Callable[[Connection, Any], None]] = {
    events.RequestReceived: Connection._on_request,
    events.DataReceived: Connection._on_data,
    events.StreamEnded: Connection._on_end,
    events.StreamReset: Connection._on_reset,
    events.WindowUpdated: Connection._on_window,
    events.RemoteSettingsChanged: Connection._on_settings,
    events.PingReceived: Connection._on_ping,
}
