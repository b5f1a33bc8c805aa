"""Sending while windows or the socket are full: calls continue when there is room, in few writes, without blocking others."""

import asyncio
from typing import Any

import grpc
import pytest
from h2 import events
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from neox_serve.transport import sending as sending_module
from neox_serve.transport.call import ServerCall
from neox_serve.transport.connection import Limits
from neox_serve.transport.framing import framed
from tests.fakes.http2_client import Http2Client, finder

LIMITS = Limits(max_message_bytes=100_000, max_streams=100)
CONNECTION_WINDOW_BYTES = 65_535
OK, RESOURCE_EXHAUSTED = "0", "8"


async def send_back(request: bytes, call: ServerCall) -> None:
    await call.write(request)


async def answer(request: bytes, _call: ServerCall) -> bytes:
    return request


async def interrupted(request: bytes, call: ServerCall) -> None:
    try:
        await call.write(request)
    except asyncio.CancelledError:
        await call.write(b"one more")
        await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too slow", (("mine", "1"),))


class HeldBack:
    """A handler whose calls send what the test chooses."""

    def __init__(self) -> None:
        self.calls: list[ServerCall] = []

    async def __call__(self, _request: bytes, call: ServerCall) -> None:
        self.calls.append(call)
        await asyncio.Event().wait()


def client(held: HeldBack | None = None, **options: Any) -> Http2Client:
    handlers: dict[str, Any] = {
        "/t/Back": grpc.unary_stream_rpc_method_handler(send_back),
        "/t/Answer": grpc.unary_unary_rpc_method_handler(answer),
        "/t/Interrupted": grpc.unary_stream_rpc_method_handler(interrupted),
        "/t/HeldBack": grpc.unary_stream_rpc_method_handler(held or HeldBack()),
    }
    return Http2Client(finder(handlers), limits=LIMITS, **options)


async def test_calls_blocked_by_the_connection_window_continue_when_it_has_room() -> None:
    under_test = client(window_bytes=1 << 20)
    large, small = b"x" * (CONNECTION_WINDOW_BYTES + 100), b"y" * 10
    first = under_test.open("/t/Back", message=None, end=False)
    for start in range(0, len(large) + 5, 10_000):
        under_test.h2.send_data(first, framed(large)[start : start + 10_000])
        await under_test.exchange()
    under_test.h2.end_stream(first)
    second = under_test.open("/t/Back", message=small)
    await under_test.exchange()
    assert len(under_test.data(first)) == CONNECTION_WINDOW_BYTES
    assert under_test.data(second) == b""
    under_test.h2.increment_flow_control_window(1000)
    await under_test.exchange()
    assert (under_test.data(first), under_test.status(first)) == (framed(large), OK)
    assert (under_test.data(second), under_test.status(second)) == (framed(small), OK)
    assert under_test.nothing_left()


async def test_call_blocked_by_its_stream_continues_when_settings_widen_it() -> None:
    under_test = client(window_bytes=10)
    stream_id = under_test.open("/t/Back", message=b"x" * 100)
    await under_test.exchange()
    assert len(under_test.data(stream_id)) == 10
    under_test.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    await under_test.exchange()
    assert (under_test.data(stream_id), under_test.status(stream_id)) == (framed(b"x" * 100), OK)


async def test_blocked_stream_does_not_split_the_write_of_others() -> None:
    held = HeldBack()
    under_test = client(held, window_bytes=50)
    blocked = under_test.open("/t/Back", message=b"x" * 100)
    others = [under_test.open("/t/HeldBack") for _ in range(32)]
    await under_test.exchange()
    before = len(under_test.socket.writes)
    for call in held.calls:
        call.put(b"token")
    await under_test.exchange()
    assert len(under_test.socket.writes) == before + 1
    assert [under_test.data(stream_id) for stream_id in others] == [framed(b"token")] * 32
    assert under_test.status(blocked) is None
    under_test.lose()
    assert under_test.nothing_left()


async def test_messages_delayed_by_the_socket_share_one_write() -> None:
    under_test = client()
    await under_test.exchange()
    under_test.connection.pause_writing()
    streams = [under_test.open("/t/Back", message=b"token") for _ in range(32)]
    await under_test.exchange()
    before = len(under_test.socket.writes)
    under_test.connection.resume_writing()
    await under_test.exchange(turns=1)
    assert len(under_test.socket.writes) == before + 1
    assert [under_test.data(stream_id) for stream_id in streams] == [framed(b"token")] * 32
    await under_test.exchange()
    assert [under_test.status(stream_id) for stream_id in streams] == [OK] * 32
    assert under_test.nothing_left()


async def test_rest_of_a_message_is_followed_by_the_next_and_the_status() -> None:
    under_test = client(window_bytes=10)
    stream_id = under_test.open("/t/Interrupted", message=b"x" * 100)
    await under_test.exchange()
    under_test.connection._calls[stream_id].cancel()
    await under_test.exchange()
    under_test.h2.increment_flow_control_window(1000, stream_id)
    await under_test.exchange()
    assert under_test.data(stream_id) == framed(b"x" * 100) + framed(b"one more")
    assert (under_test.status(stream_id), under_test.headers(stream_id)["mine"]) == (RESOURCE_EXHAUSTED, "1")
    assert under_test.nothing_left()


async def test_slowly_read_response_restarts_its_timeout_after_every_part() -> None:
    under_test = client(window_bytes=10)
    stream_id = under_test.open("/t/Answer", message=b"x" * 100)
    await under_test.exchange()
    lingering = under_test.connection._sending._lingering
    first = lingering[stream_id]
    under_test.h2.increment_flow_control_window(10, stream_id)
    await under_test.exchange()
    second = lingering[stream_id]
    assert (first.cancelled(), second.cancelled()) == (True, False)
    under_test.h2.increment_flow_control_window(10)
    await under_test.exchange()
    assert lingering[stream_id] is second
    under_test.h2.increment_flow_control_window(1000, stream_id)
    await under_test.exchange()
    assert (under_test.data(stream_id), under_test.status(stream_id)) == (framed(b"x" * 100), OK)
    assert second.cancelled()
    assert under_test.nothing_left()


async def test_unread_response_is_reset_as_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "_LINGER_S", 0.0)
    under_test = client(window_bytes=10)
    stream_id = under_test.open("/t/Answer", message=b"x" * 100)
    await under_test.exchange()
    assert under_test.reset_code(stream_id) is ErrorCodes.CANCEL
    assert under_test.nothing_left()


async def test_blocked_call_that_is_cancelled_leaves_nothing() -> None:
    under_test = client(window_bytes=10)
    reset, lost, lingering = (under_test.open(path, message=b"x" * 100) for path in ("/t/Back", "/t/Back", "/t/Answer"))
    await under_test.exchange()
    assert set(under_test.connection._sending._blocked) == {reset, lost, lingering}
    under_test.h2.reset_stream(reset)
    await under_test.exchange()
    assert set(under_test.connection._sending._blocked) == {lost, lingering}
    under_test.lose()
    assert under_test.nothing_left()


async def test_client_that_sends_and_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "_MAX_UNREAD_BYTES", 1000)
    under_test = client()
    await under_test.exchange()
    before = len(under_test.socket.writes)
    under_test.connection.pause_writing()
    while not under_test.socket.closed:
        under_test.open("/t/None", message=None)
        await under_test.exchange(turns=1)
    assert len(b"".join(under_test.socket.writes[before:])) <= 1000


async def test_client_that_reads_late_may_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "_MAX_UNREAD_BYTES", 1000)
    under_test = client()
    for _ in range(100):
        under_test.connection.pause_writing()
        under_test.open("/t/None", message=None)
        await under_test.exchange(turns=1)
        under_test.connection.resume_writing()
    assert not under_test.socket.closed


async def test_data_follows_frames_that_h2_queued_before() -> None:
    held = HeldBack()
    under_test = client(held)
    stream_id = under_test.open("/t/HeldBack")
    await under_test.exchange()
    await held.calls[0].send_initial_metadata((("mine", "1"),))
    under_test.connection._h2.ping(b"ping-one")
    held.calls[0].put(b"first")
    under_test.connection._h2.ping(b"ping-two")
    held.calls[0].put(b"second")
    under_test.events.clear()
    await under_test.exchange()
    kinds = [type(event) for event in under_test.events]
    assert kinds == [events.ResponseReceived, events.PingReceived, events.DataReceived, events.PingReceived, events.DataReceived]
    assert under_test.data(stream_id) == framed(b"first") + framed(b"second")


async def test_frames_respect_the_maximum_frame_size() -> None:
    held = HeldBack()
    under_test = client(held)
    stream_id = under_test.open("/t/HeldBack")
    await under_test.exchange()
    held.calls[0].put(b"x" * 40_000)
    await under_test.exchange()
    sizes = [len(event.data or b"") for event in under_test.events if isinstance(event, events.DataReceived)]
    assert sizes == [16_384, 16_384, 40_005 - 2 * 16_384]
    assert under_test.data(stream_id) == framed(b"x" * 40_000)


@pytest.mark.parametrize("end", ["its stream", "its connection"])
async def test_output_after_the_client_is_gone_is_dropped_and_frees_the_call(end: str) -> None:
    held = HeldBack()
    under_test = client(held)
    stream_id = under_test.open("/t/HeldBack")
    await under_test.exchange()
    server, call = under_test.connection._h2, held.calls[0]
    if end == "its stream":
        under_test.h2.reset_stream(stream_id)
    else:
        under_test.h2.close_connection()
    server.receive_data(
        under_test.h2.data_to_send()
    )  # h2 has processed it, but the connection has not: as while bytes of the same read are handled
    before = len(under_test.socket.writes)
    call.put(b"token")
    await under_test.exchange()
    assert call.cancelled()
    assert b"token" not in b"".join(under_test.socket.writes[before:])
    assert under_test.nothing_left()


@settings(max_examples=25)
@given(st.lists(st.integers(min_value=1, max_value=60), max_size=30), st.lists(st.binary(max_size=80), min_size=1, max_size=5))
async def test_messages_arrive_complete_with_any_windows(rooms: list[int], messages: list[bytes]) -> None:
    under_test = client(window_bytes=7)
    streams = [under_test.open("/t/Back", message=message) for message in messages]
    for number, room in enumerate(rooms):
        stream_id = streams[number % len(streams)]
        if under_test.status(stream_id) is None:
            under_test.h2.increment_flow_control_window(room, stream_id)
        await under_test.exchange()
    for stream_id in streams:
        if under_test.status(stream_id) is None:
            under_test.h2.increment_flow_control_window(1000, stream_id)
    await under_test.exchange()
    assert [under_test.data(stream_id) for stream_id in streams] == [framed(message) for message in messages]
    assert [under_test.status(stream_id) for stream_id in streams] == [OK] * len(streams)
    assert under_test.nothing_left()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 60)), max_size=30))
async def test_windows_match_those_of_the_client(steps: list[tuple[int, int, int]]) -> None:
    """In each step, one of three streams sends a message and its window grows."""
    held = HeldBack()
    under_test = client(held, window_bytes=50)
    streams = [under_test.open("/t/HeldBack") for _ in range(3)]
    await under_test.exchange()
    server = under_test.connection._h2
    for number, size, room in steps:
        held.calls[number].put(b"x" * size)
        if room:
            under_test.h2.increment_flow_control_window(room, streams[number])
        await under_test.exchange()
    for stream_id in streams:
        assert server.local_flow_control_window(stream_id) == under_test.h2.remote_flow_control_window(stream_id)
    assert server.outbound_flow_control_window == under_test.h2.inbound_flow_control_window
