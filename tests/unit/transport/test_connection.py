"""One connection of the transport, driven in memory: calls of every kind, slow clients, and clients that violate the protocol."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from h2.errors import ErrorCodes

from neox_serve.transport import connection as connection_module
from neox_serve.transport import sending as sending_module
from neox_serve.transport.call import ServerCall
from neox_serve.transport.connection import Limits
from neox_serve.transport.framing import framed
from tests.fakes.http2_client import Http2Client, finder

LIMITS = Limits(max_message_bytes=1000, max_streams=100)
LARGE = b"x" * 3000
OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = "0", "1", "2", "4", "8", "12", "13"


async def echo(request: bytes, call: ServerCall) -> bytes:
    call.set_trailing_metadata((("mine", "1"), ("raw-bin", b"\0\1")))
    return request


async def thrice(request: bytes, call: ServerCall) -> None:
    for _ in range(3):
        await call.write(request)


async def each(requests: AsyncIterator[bytes], _call: ServerCall) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


async def wait(_request: bytes, _call: ServerCall) -> bytes:
    await asyncio.Event().wait()
    return b""


async def break_down(_request: bytes, _call: ServerCall) -> bytes:
    raise ValueError("secret")


async def large(_request: bytes, call: ServerCall) -> None:
    try:
        await call.write(LARGE)
    except asyncio.CancelledError:
        await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "you read too slowly")


HANDLERS: dict[str, Any] = {
    "/t/Echo": grpc.unary_unary_rpc_method_handler(echo),
    "/t/Thrice": grpc.unary_stream_rpc_method_handler(thrice),
    "/t/Each": grpc.stream_stream_rpc_method_handler(each),
    "/t/Wait": grpc.unary_unary_rpc_method_handler(wait),
    "/t/Break": grpc.unary_unary_rpc_method_handler(break_down),
    "/t/Large": grpc.unary_stream_rpc_method_handler(large),
}


def client(**options: Any) -> Http2Client:
    return Http2Client(finder(HANDLERS), limits=LIMITS, **options)


async def test_unary_call_gets_response_status_and_metadata() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Echo", message=b"hi")
    await under_test.exchange()
    assert under_test.data(stream_id) == framed(b"hi")
    headers = under_test.headers(stream_id)
    assert (headers[":status"], headers["grpc-status"], headers["mine"], headers["raw-bin"]) == ("200", OK, "1", "AAE")
    assert under_test.nothing_left()


async def test_stream_of_requests_gets_one_response_each() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Each", message=b"a", end=False)
    await under_test.exchange()
    assert under_test.data(stream_id) == framed(b"A")
    under_test.h2.send_data(stream_id, framed(b"b"), end_stream=True)
    await under_test.exchange()
    assert under_test.data(stream_id) == framed(b"A") + framed(b"B")
    assert under_test.status(stream_id) == OK
    assert under_test.nothing_left()


async def test_messages_of_many_streams_in_one_turn_share_one_write() -> None:
    under_test = client()
    calls: list[ServerCall] = []

    async def hold(_request: bytes, call: ServerCall) -> None:
        calls.append(call)
        await asyncio.Event().wait()

    HANDLERS["/t/Hold"] = grpc.unary_stream_rpc_method_handler(hold)
    streams = [under_test.open("/t/Hold") for _ in range(64)]
    await under_test.exchange()
    before = len(under_test.socket.writes)
    for call in calls:
        call.put(b"token")
    await under_test.exchange()
    assert len(under_test.socket.writes) == before + 1
    assert [under_test.data(stream_id) for stream_id in streams] == [framed(b"token")] * 64
    under_test.lose()
    assert under_test.nothing_left()


@pytest.mark.parametrize(
    ("path", "message", "status"),
    [
        ("/t/None", b"", UNIMPLEMENTED),
        ("/t/Break", b"", UNKNOWN),
        ("/t/Echo", b"x" * 1001, RESOURCE_EXHAUSTED),
        ("/t/Echo", None, UNIMPLEMENTED),
    ],
    ids=["unknown method", "handler raises", "message too large", "no message"],
)
async def test_unserved_call_gets_its_status(path: str, message: bytes | None, status: str) -> None:
    under_test = client()
    stream_id = under_test.open(path, message=message)
    await under_test.exchange()
    assert under_test.status(stream_id) == status
    assert "secret" not in under_test.headers(stream_id).get("grpc-message", "")
    assert under_test.nothing_left()


async def test_two_messages_in_a_unary_call_are_refused() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Echo", end=False)
    under_test.h2.send_data(stream_id, framed(b"more"), end_stream=True)
    await under_test.exchange()
    assert under_test.status(stream_id) == UNIMPLEMENTED
    assert under_test.nothing_left()


async def test_request_cut_off_in_a_message_is_refused() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Echo", message=None, end=False)
    under_test.h2.send_data(stream_id, framed(b"whole")[:-1], end_stream=True)
    await under_test.exchange()
    assert under_test.status(stream_id) == INTERNAL
    assert under_test.nothing_left()


async def test_endless_request_messages_are_refused() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Each", message=None, end=False)
    under_test.h2.send_data(stream_id, framed(b"") * 100)
    await under_test.exchange()
    assert under_test.status(stream_id) == RESOURCE_EXHAUSTED
    assert under_test.nothing_left()


async def test_request_that_is_not_grpc_gets_415() -> None:
    under_test = client()
    stream_id = under_test.open("/", message=None, method="GET")
    await under_test.exchange()
    assert under_test.headers(stream_id)[":status"] == "415"


async def test_bad_timeout_is_refused() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Echo", ("grpc-timeout", "soon"))
    await under_test.exchange()
    assert under_test.status(stream_id) == INTERNAL


@pytest.mark.parametrize("path", ["/t/None", "/t/Wait", "/t/Echo"])
async def test_call_reset_in_the_same_read_affects_no_other_call(path: str) -> None:
    under_test = client()
    other = under_test.open("/t/Wait")
    await under_test.exchange()
    reset = under_test.open(path, ("grpc-timeout", "x") if path == "/t/Echo" else ("mine", "1"))
    under_test.h2.reset_stream(reset)
    await under_test.exchange()
    assert not under_test.socket.closed
    assert list(under_test.connection._calls) == [other]
    under_test.lose()


@pytest.mark.parametrize("way", ["reset", "loss"])
async def test_cancelled_call_cancels_its_handler(way: str) -> None:
    under_test = client()
    stream_id = under_test.open("/t/Wait")
    await under_test.exchange()
    task = under_test.connection._calls[stream_id].task
    assert task is not None
    if way == "reset":
        under_test.h2.reset_stream(stream_id)
        await under_test.exchange()
    else:
        under_test.lose()
        await asyncio.sleep(0)
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert under_test.nothing_left()


async def test_deadline_cancels_a_handler_that_ignores_it() -> None:
    under_test = client()
    stream_id = under_test.open("/t/Wait", ("grpc-timeout", "1m"))
    await under_test.exchange()
    task = under_test.connection._calls[stream_id].task
    assert task is not None
    await asyncio.wait({task}, timeout=5)
    await under_test.exchange()
    assert under_test.status(stream_id) == DEADLINE_EXCEEDED
    assert under_test.nothing_left()


async def test_message_larger_than_the_window_waits_without_blocking_others() -> None:
    under_test = client(window_bytes=1000)
    slow = under_test.open("/t/Large")
    await under_test.exchange()
    assert under_test.data(slow) == framed(LARGE)[:1000]
    other = under_test.open("/t/Thrice", message=b"quick")
    await under_test.exchange()
    assert (under_test.data(other), under_test.status(other)) == (framed(b"quick") * 3, OK)
    under_test.h2.increment_flow_control_window(5000, slow)
    await under_test.exchange()
    assert (under_test.data(slow), under_test.status(slow)) == (framed(LARGE), OK)
    assert under_test.nothing_left()


async def test_full_socket_delays_messages_until_it_has_room() -> None:
    under_test = client()
    await under_test.exchange()
    under_test.connection.pause_writing()
    stream_id = under_test.open("/t/Thrice", message=b"later")
    await under_test.exchange()
    assert under_test.data(stream_id) == b""
    under_test.connection.resume_writing()
    await under_test.exchange()
    assert (under_test.data(stream_id), under_test.status(stream_id)) == (framed(b"later") * 3, OK)


async def test_status_after_a_cancelled_write_follows_the_rest_of_its_message() -> None:
    under_test = client(window_bytes=1000)
    stream_id = under_test.open("/t/Large")
    await under_test.exchange()
    under_test.connection._calls[stream_id].cancel()
    await under_test.exchange()
    assert under_test.status(stream_id) is None
    under_test.h2.increment_flow_control_window(5000, stream_id)
    await under_test.exchange()
    assert (under_test.data(stream_id), under_test.status(stream_id)) == (framed(LARGE), RESOURCE_EXHAUSTED)
    assert under_test.nothing_left()


async def test_status_that_is_never_read_ends_in_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "_LINGER_S", 0.0)
    under_test = client(window_bytes=1000)
    stream_id = under_test.open("/t/Large")
    await under_test.exchange()
    under_test.connection._calls[stream_id].cancel()
    await under_test.exchange()
    assert under_test.reset_code(stream_id) is ErrorCodes.CANCEL
    assert under_test.nothing_left()


async def test_endless_pings_are_answered_by_goaway() -> None:
    under_test = client()
    for _ in range(10):
        under_test.h2.ping(b"12345678")
    await under_test.exchange()
    assert ErrorCodes.ENHANCE_YOUR_CALM in under_test.goaway_codes()
    assert under_test.socket.closed


async def test_protocol_error_closes_the_connection() -> None:
    under_test = client()
    under_test.connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert under_test.socket.closed


async def test_call_while_the_server_stops_gets_refused_stream() -> None:
    under_test = client()
    running = under_test.open("/t/Wait")
    await under_test.exchange()
    under_test.connection.refuse_new()
    late = under_test.open("/t/Echo")
    await under_test.exchange()
    assert under_test.reset_code(late) is ErrorCodes.REFUSED_STREAM
    assert list(under_test.connection._calls) == [running]
    under_test.connection.close()
    await under_test.exchange()
    assert under_test.goaway_codes() == [ErrorCodes.NO_ERROR]


async def test_request_that_never_ends_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_REQUEST_TIMEOUT_S", 0.0)
    under_test = client()
    stream_id = under_test.open("/t/Echo", message=None, end=False)
    await under_test.exchange()
    assert under_test.reset_code(stream_id) is ErrorCodes.CANCEL
    assert under_test.nothing_left()
