"""The life of a connection: preface, PING, silence, GOAWAY, floods, and violations of the protocol."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from h2 import events
from h2.errors import ErrorCodes
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from neox_serve.transport import connection as connection_module
from neox_serve.transport.call import ServerCall
from neox_serve.transport.connection import Limits
from neox_serve.transport.framing import framed
from tests.fakes.http2_client import Http2Client, finder

LIMITS = Limits(max_message_bytes=1000, max_streams=10)
AT_ONCE = replace(LIMITS, keepalive_s=0.0, keepalive_timeout_s=0.0)
OK = "0"


async def echo(request: bytes, _call: ServerCall) -> bytes:
    return request


async def wait(_request: bytes, _call: ServerCall) -> bytes:
    await asyncio.Event().wait()
    return b""


HANDLERS: dict[str, Any] = {"/t/Echo": grpc.unary_unary_rpc_method_handler(echo), "/t/Wait": grpc.unary_unary_rpc_method_handler(wait)}


def client(limits: Limits = LIMITS, **extra: Any) -> Http2Client:
    return Http2Client(finder(HANDLERS), limits=limits, **extra)


async def running(under_test: Http2Client) -> "asyncio.Task[None]":
    """Starts a call that waits, and returns its task."""
    stream_id = under_test.open("/t/Wait")
    await under_test.exchange()
    task = under_test.connection._calls[stream_id].task
    assert task is not None
    return task


async def assert_over(under_test: Http2Client, task: "asyncio.Task[None]", *codes: ErrorCodes) -> None:
    """Checks that the client got a GOAWAY, the socket is closed, and no state is left."""
    await under_test.exchange()
    assert under_test.socket.closed
    assert under_test.goaway_codes() == list(codes)
    under_test.lose()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert under_test.nothing_left()
    assert under_test.closed == [under_test.connection]


def pings(under_test: Http2Client) -> int:
    return sum(isinstance(event, events.PingReceived) for event in under_test.events)


async def test_silent_client_is_pinged_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_PREFACE_TIMEOUT_S", 0.0)
    under_test = client(AT_ONCE)
    task = await running(under_test)
    assert pings(under_test) == 1
    await assert_over(under_test, task)


async def test_client_without_a_preface_is_dropped_without_a_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_PREFACE_TIMEOUT_S", 0.0)
    under_test = client(AT_ONCE)
    for _ in range(3):
        await asyncio.sleep(0)
    assert under_test.socket.closed
    assert b"keepaliv" not in b"".join(under_test.socket.writes)


async def test_client_that_answers_pings_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_PREFACE_TIMEOUT_S", 0.0)
    under_test = client(replace(LIMITS, keepalive_s=0.0))
    await under_test.exchange()
    assert pings(under_test) == 1
    await under_test.exchange()
    under_test.connection._check_alive()
    assert not under_test.socket.closed
    under_test.lose()


async def test_lost_connection_stops_the_keepalive_timer() -> None:
    under_test = client()
    under_test.lose()
    timer = under_test.connection._timer
    assert timer is not None
    assert timer.cancelled()


async def test_pings_between_sent_data_are_answered() -> None:
    under_test = client()
    for _ in range(20):
        under_test.h2.ping(b"12345678")
        stream_id = under_test.open("/t/Echo")
        await under_test.exchange()
        assert under_test.status(stream_id) == OK
    assert under_test.goaway_codes() == []


async def test_pings_between_blocked_messages_exceed_the_limit() -> None:
    under_test = client(window_bytes=1)
    task = await running(under_test)
    under_test.open("/t/Echo")
    await under_test.exchange()
    for _ in range(5):
        under_test.h2.increment_flow_control_window(1)
        under_test.h2.ping(b"12345678")
        under_test.send()
    await assert_over(under_test, task, ErrorCodes.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize(
    "flood",
    [PingFrame(0, b"12345678"), SettingsFrame(0, {SettingsFrame.MAX_CONCURRENT_STREAMS: 1})],
    ids=["pings", "settings"],
)
async def test_flood_of_acknowledged_frames_closes_the_connection_once(flood: Frame) -> None:
    under_test = client()
    task = await running(under_test)
    for _ in range(3):
        under_test.connection.data_received(flood.serialize() * 1000)
    await assert_over(under_test, task, ErrorCodes.ENHANCE_YOUR_CALM)


async def test_flood_of_requests_reset_at_once_closes_the_connection() -> None:
    under_test = client()
    task = await running(under_test)
    for _ in range(2000):
        under_test.h2.reset_stream(under_test.open("/t/Echo", message=None, end=False))
    await assert_over(under_test, task, ErrorCodes.ENHANCE_YOUR_CALM)


async def test_calls_cancelled_after_they_began_never_exceed_the_limit() -> None:
    under_test = client()
    for _ in range(100):
        streams = [under_test.open("/t/Wait") for _ in range(LIMITS.max_streams)]
        await under_test.exchange(turns=1)
        for stream_id in streams:
            under_test.h2.reset_stream(stream_id)
        await under_test.exchange(turns=1)
    assert not under_test.socket.closed
    assert under_test.nothing_left()


async def test_headers_without_end_close_the_connection() -> None:
    under_test = client()
    task = await running(under_test)
    under_test.connection.data_received(HeadersFrame(3).serialize() + ContinuationFrame(3).serialize() * 100)
    await assert_over(under_test, task, ErrorCodes.PROTOCOL_ERROR)


async def test_headers_beyond_the_limit_close_the_connection() -> None:
    under_test = client()
    task = await running(under_test)
    under_test.open("/t/Echo", ("mine", "x" * LIMITS.max_header_bytes))
    await assert_over(under_test, task, ErrorCodes.ENHANCE_YOUR_CALM)


async def test_streams_beyond_the_limit_close_the_connection() -> None:
    under_test = client()
    task = await running(under_test)
    under_test.h2.remote_settings.max_concurrent_streams = 1000
    under_test.h2.remote_settings.acknowledge()
    for _ in range(LIMITS.max_streams):
        under_test.open("/t/Wait")
    await assert_over(under_test, task, ErrorCodes.PROTOCOL_ERROR)


async def test_frame_on_a_stream_never_opened_closes_the_connection() -> None:
    under_test = client()
    task = await running(under_test)
    under_test.connection.data_received(DataFrame(99, framed(b"x")).serialize())
    await assert_over(under_test, task, ErrorCodes.PROTOCOL_ERROR)


async def test_requests_after_goaway_begin_no_call() -> None:
    under_test = client()
    task = await running(under_test)
    late = under_test.open("/t/Wait")
    under_test.connection.close()
    under_test.send()
    assert late not in under_test.connection._calls
    await assert_over(under_test, task, ErrorCodes.NO_ERROR)


async def test_request_in_the_read_that_exceeds_a_limit_begins_no_call() -> None:
    under_test = client()
    task = await running(under_test)
    for _ in range(10):
        under_test.h2.ping(b"12345678")
    late = under_test.open("/t/Wait")
    under_test.send()
    assert late not in under_test.connection._calls
    await assert_over(under_test, task, ErrorCodes.ENHANCE_YOUR_CALM)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(min_value=0), st.integers(min_value=0, max_value=255)), max_size=5))
async def test_corrupted_bytes_break_only_their_connection(changes: list[tuple[int, int]]) -> None:
    under_test = client()
    for number in range(3):
        under_test.open("/t/Echo", ("grpc-timeout", "1S"), ("key-bin", "AAE"), message=b"x" * number)
    data = bytearray(under_test.h2.data_to_send())
    for place, value in changes:
        data[place % len(data)] = value
    under_test.connection.data_received(bytes(data))
    for _ in range(6):
        await asyncio.sleep(0)
    under_test.lose()
    await asyncio.sleep(0)
    assert under_test.nothing_left()


@pytest.mark.parametrize("protocol", [None, "http/1.1"])
async def test_tls_without_http2_is_refused(protocol: str | None) -> None:
    under_test = client(ssl_object=SimpleNamespace(selected_alpn_protocol=lambda: protocol))
    under_test.connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0)
    assert under_test.socket.closed
    assert under_test.socket.writes == []
    under_test.lose()
    assert under_test.closed == [under_test.connection]


async def test_tls_with_http2_is_served() -> None:
    under_test = client(ssl_object=SimpleNamespace(selected_alpn_protocol=lambda: "h2"))
    stream_id = under_test.open("/t/Echo")
    await under_test.exchange()
    assert under_test.status(stream_id) == OK
