"""One client's connection: HTTP/2 by h2, a call a stream, and what they all have to say in one turn of the loop in one write.

Theory of operation: everything happens on one loop and never waits. Bytes that arrive become h2's events, and these messages of calls.
Calls hand what they say to the connection's `Sending`, which writes it at the end of the turn.
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
from neox_serve.transport.floods import Floods
from neox_serve.transport.framing import MessageReader, StatusError, metadata_of, response_headers, status_headers, timeout_s
from neox_serve.transport.handling import handle
from neox_serve.transport.keepalive import Check, Keepalive
from neox_serve.transport.pings import Pings
from neox_serve.transport.sending import Sending, tried

_log = structlog.get_logger(__name__)

_STREAM_WINDOW_BYTES = 1 << 20
_CONNECTION_WINDOW_BYTES = 1 << 24
# A read is taken in parts: 256 KiB of requests that are reset at once would be 1.5 s of h2's time before anyone could object.
_PART_BYTES = 1 << 14
# How long a client has for what costs it nothing: to say hello, and to send a request that it has begun.
_HELLO_S = 10.0
_REQUEST_S = 60.0
# Handlers watch deadlines themselves and say more about them; this is for those that do not.
_DEADLINE_GRACE_S = 0.05

FindHandler = Callable[[str], "grpc.RpcMethodHandler[Any, Any]"]
"""A path's handler. Raises StatusError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of a server. Bytes and counts; keepalive as gRPC has it, in seconds.

    A client that has sent nothing for keepalive_s is pinged, and is gone where it does not answer within keepalive_timeout_s. One that
    pings more often than every min_ping_interval_s though nothing is sent to it is turned away.
    """

    max_message_bytes: int
    max_streams: int
    max_header_bytes: int = 16_384
    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 10.0
    min_ping_interval_s: float = 4.5


@dataclass(slots=True)
class _Incoming:
    """A call whose request is not whole. timer: what ends it if it never is."""

    call: ServerCall
    reader: MessageReader
    requests: Requests
    timer: asyncio.TimerHandle | None


class Connection(asyncio.Protocol):
    """A connection. on_closed: called once, at its end."""

    def __init__(
        self,
        *,
        limits: Limits,
        find_handler: FindHandler,
        on_open: Callable[["Connection"], None],
        on_closed: Callable[["Connection"], None],
    ) -> None:
        self._limits = limits
        self._find_handler = find_handler
        self._on_open = on_open
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False))
        self._pings = Pings(limits.min_ping_interval_s)
        self._sending = Sending(self._h2, self._pings, on_answered=self._answered, on_gone=self._forget)
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, ServerCall] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._closing = False
        self._known_stream_id = 0
        self._floods = Floods()
        self._keepalive = Keepalive()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def calls(self) -> int:
        """Calls whose handlers run or whose statuses wait."""
        return len(self._calls)

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello."""
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            cast("asyncio.Transport", transport).abort()
            return
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not of asyncio's class
        self._sending.attach(self._transport)
        self._on_open(self)
        self._say_hello()
        self._timer = self._loop.call_later(_HELLO_S, self._check_alive)

    def _say_hello(self) -> None:
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
        """Takes what has arrived. A client that breaks HTTP/2's rules is told so and loses its connection."""
        self._keepalive.heard()
        for start in range(0, len(data), _PART_BYTES):
            self._take(data[start : start + _PART_BYTES])
        self._sending.flush_soon()

    def _take(self, part: bytes) -> None:
        if self._is_over():
            return
        self._known_stream_id = self._h2.highest_inbound_stream_id
        try:
            arrived = self._h2.receive_data(part)
        except ProtocolError as error:
            _log.info("client broke the protocol", peer=self._sending.peer, failure=str(error))
            self._close()
            return
        for event in arrived:
            if (react := _REACTIONS.get(type(event))) is not None and not self._is_over():
                react(self, event)

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._sending.pause()

    def resume_writing(self) -> None:
        """It has room again."""
        self._sending.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels what still runs."""
        if self._timer is not None:
            self._timer.cancel()
        for call in tuple(self._calls.values()):
            self._forget(call)
        self._on_closed(self)

    # How calls end

    def _answered(self, call: ServerCall) -> None:
        """The status has gone. Where the request is not whole yet, its rest is not wanted."""
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

    # What clients send

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
        timer = None if handler.request_streaming else self._loop.call_later(_REQUEST_S, self._sending.reset, call)
        self._incoming[stream_id] = _Incoming(call, reader, requests, timer)
        call.task = self._loop.create_task(handle(call, requests, handler))
        if deadline_s is not None:
            late = self._loop.call_at(deadline_s + _DEADLINE_GRACE_S, call.cancel)
            call.task.add_done_callback(lambda _: late.cancel())

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
            incoming.call.end(grpc.StatusCode.INTERNAL, "the request ends within a message")
            incoming.call.cancel()
        incoming.requests.put(None)

    def _on_reset(self, event: events.StreamReset) -> None:
        if (call := self._calls.get(event.stream_id)) is not None:
            self._forget(call)
        if event.stream_id > self._known_stream_id:
            self._count_dear()

    def _on_window(self, event: events.WindowUpdated) -> None:
        if event.stream_id == 0:
            self._sending.unblock()
        else:
            self._sending.unblock_stream(event.stream_id)

    def _on_settings(self, _event: events.RemoteSettingsChanged) -> None:
        self._sending.unblock()
        self._count_dear()

    def _on_ping(self, _event: events.PingReceived) -> None:
        if self._pings.too_many(self._loop.time()):
            self._turn_away(b"too_many_pings")

    def _count_dear(self) -> None:
        if self._floods.too_many(self._loop.time()):
            self._turn_away(b"too_many_settings_or_resets")

    # Life

    def refuse_new(self) -> None:
        """Calls that come from now on are sent back; clients try them elsewhere."""
        self._closing = True

    def close(self) -> None:
        """Ends the connection; what runs is cancelled."""
        for call in tuple(self._calls.values()):
            call.cancel()
        self._close(ErrorCodes.NO_ERROR)

    def abort(self) -> None:
        """Drops the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _check_alive(self) -> None:
        check = self._keepalive.check()
        if check is Check.DROP or (check is Check.ASK and not tried(self._h2.ping, b"keepaliv")):
            self.abort()
            return
        self._sending.flush_soon()
        wait_s = self._limits.keepalive_s if check is Check.WAIT else self._limits.keepalive_timeout_s
        self._timer = self._loop.call_later(wait_s, self._check_alive)

    def _is_over(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _turn_away(self, reason: bytes) -> None:
        _log.info("client asks too much", peer=self._sending.peer, reason=reason.decode())
        self._close(ErrorCodes.ENHANCE_YOUR_CALM, reason)

    def _close(self, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR, reason: bytes | None = None) -> None:
        """Says goodbye, unless h2 has done that already, and closes."""
        try:
            if code is not ErrorCodes.PROTOCOL_ERROR:
                self._h2.close_connection(code, reason)
        except ProtocolError:
            _log.debug("connection was closed already", peer=self._sending.peer)
        self._sending.flush()
        if self._transport is not None:
            self._transport.close()


_REACTIONS: dict[type, Callable[[Connection, Any], None]] = {
    events.RequestReceived: Connection._on_request,
    events.DataReceived: Connection._on_data,
    events.StreamEnded: Connection._on_end,
    events.StreamReset: Connection._on_reset,
    events.WindowUpdated: Connection._on_window,
    events.RemoteSettingsChanged: Connection._on_settings,
    events.PingReceived: Connection._on_ping,
}
