"""Handlers of all kinds: what they see of their calls, and the statuses that they end with."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from h2.errors import ErrorCodes

from neox_serve.transport.call import ServerCall
from neox_serve.transport.connection import Limits
from neox_serve.transport.framing import StatusError, framed
from tests.fakes.http2_client import Http2Client, finder

LIMITS = Limits(max_message_bytes=1000, max_streams=100)
OK, CANCELLED, UNKNOWN, NOT_FOUND, UNIMPLEMENTED, INTERNAL = "0", "1", "2", "5", "12", "13"
NUMBERS: dict[str, Any] = {"request_deserializer": int, "response_serializer": lambda number: b"%d" % number}


async def double(request: int, _call: ServerCall) -> int:
    return 2 * request


async def count(request: int, _call: ServerCall) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def count_by_writing(request: int, call: ServerCall) -> None:
    for number in range(request):
        await call.write(number)


async def add(requests: AsyncIterator[int], _call: ServerCall) -> int:
    return sum([request async for request in requests])


async def double_each(requests: AsyncIterator[int], _call: ServerCall) -> AsyncIterator[int]:
    async for request in requests:
        yield 2 * request


async def double_each_by_writing(requests: AsyncIterator[int], call: ServerCall) -> None:
    async for request in requests:
        await call.write(2 * request)


KINDS: dict[str, Any] = {
    "/t/Double": grpc.unary_unary_rpc_method_handler(double, **NUMBERS),
    "/t/Count": grpc.unary_stream_rpc_method_handler(count, **NUMBERS),
    "/t/CountByWriting": grpc.unary_stream_rpc_method_handler(count_by_writing, **NUMBERS),
    "/t/Add": grpc.stream_unary_rpc_method_handler(add, **NUMBERS),
    "/t/DoubleEach": grpc.stream_stream_rpc_method_handler(double_each, **NUMBERS),
    "/t/DoubleEachByWriting": grpc.stream_stream_rpc_method_handler(double_each_by_writing, **NUMBERS),
}


async def called(handler: Any, *headers: tuple[str, str], message: bytes = b"") -> tuple[Http2Client, int]:
    """Returns a client that has called a unary handler, and the stream of the call."""
    client = Http2Client(finder({"/t/Method": grpc.unary_unary_rpc_method_handler(handler)}), limits=LIMITS)
    stream_id = client.open("/t/Method", *headers, message=message)
    await client.exchange()
    return client, stream_id


@pytest.mark.parametrize(
    ("method", "requests", "answers"),
    [
        ("Double", [b"3"], [b"6"]),
        ("Count", [b"3"], [b"0", b"1", b"2"]),
        ("Count", [b"0"], []),
        ("CountByWriting", [b"3"], [b"0", b"1", b"2"]),
        ("Add", [b"1", b"2", b"3"], [b"6"]),
        ("Add", [], [b"0"]),
        ("DoubleEach", [b"1", b"2"], [b"2", b"4"]),
        ("DoubleEach", [], []),
        ("DoubleEachByWriting", [b"1", b"2"], [b"2", b"4"]),
    ],
)
async def test_handler_of_every_kind_responds(method: str, requests: list[bytes], answers: list[bytes]) -> None:
    client = Http2Client(finder(KINDS), limits=LIMITS)
    stream_id = client.open(f"/t/{method}", message=None, end=False)
    client.h2.send_data(stream_id, b"".join(framed(request) for request in requests), end_stream=True)
    await client.exchange(turns=10)
    assert client.data(stream_id) == b"".join(framed(answer) for answer in answers)
    assert client.status(stream_id) == OK
    assert client.nothing_left()


@pytest.mark.parametrize("method", ["Double", "Count", "Add", "DoubleEach"])
async def test_malformed_request_is_refused_without_showing_its_content(method: str) -> None:
    client = Http2Client(finder(KINDS), limits=LIMITS)
    stream_id = client.open(f"/t/{method}", message=b"secret")
    await client.exchange()
    assert client.status(stream_id) == INTERNAL
    assert "secret" not in client.headers(stream_id)["grpc-message"]
    assert client.nothing_left()


async def test_handler_sees_metadata_of_its_client() -> None:
    seen: list[Any] = []

    async def look(_request: bytes, call: ServerCall) -> bytes:
        seen.extend((call.invocation_metadata(), call.peer(), call.cancelled(), call.time_remaining()))
        return b""

    await called(look, ("grpc-timeout", "1H"), ("mine", "1"), ("raw-bin", "AAE"))
    metadata, peer, cancelled, remaining_s = seen
    assert metadata == (("mine", "1"), ("raw-bin", b"\0\1"))
    assert (peer, cancelled) == ("None", False)
    assert 0 < remaining_s <= 3600


async def test_handler_without_a_deadline_has_no_time_remaining() -> None:
    seen: list[float | None] = []

    async def look(_request: bytes, call: ServerCall) -> bytes:
        seen.append(call.time_remaining())
        return b""

    await called(look)
    assert seen == [None]


async def test_initial_metadata_is_sent_with_the_headers() -> None:
    async def begin(_request: bytes, call: ServerCall) -> bytes:
        await call.send_initial_metadata((("mine", "1"), ("raw-bin", b"\0\1")))
        await asyncio.Event().wait()
        return b""

    client, stream_id = await called(begin)
    headers = client.headers(stream_id)
    assert (headers[":status"], headers["mine"], headers["raw-bin"], headers.get("grpc-status")) == ("200", "1", "AAE", None)
    client.lose()


@pytest.mark.parametrize("started", [False, True])
async def test_handler_that_aborts_sends_its_status_once(started: bool) -> None:
    async def fail(_request: bytes, call: ServerCall) -> bytes:
        if started:
            await call.send_initial_metadata(())
        await call.abort(grpc.StatusCode.NOT_FOUND, "no größe\n", (("why-bin", b"\0\1"),))
        return b"never sent"

    client, stream_id = await called(fail)
    headers = client.headers(stream_id)
    assert (headers["grpc-status"], headers["grpc-message"], headers["why-bin"]) == (NOT_FOUND, "no gr%C3%B6%C3%9Fe%0A", "AAE")
    assert client.data(stream_id) == b""
    assert client.nothing_left()


async def test_handler_that_raises_after_a_message_ends_with_unknown() -> None:
    async def fail(request: bytes, call: ServerCall) -> bytes:
        await call.write(request)
        raise ValueError("secret")

    client, stream_id = await called(fail, message=b"part")
    assert client.data(stream_id) == framed(b"part")
    assert (client.status(stream_id), client.headers(stream_id)["grpc-message"]) == (UNKNOWN, "ValueError")


async def test_handler_that_raises_a_status_ends_with_it() -> None:
    async def fail(_request: bytes, _call: ServerCall) -> bytes:
        raise StatusError(grpc.StatusCode.NOT_FOUND, "nothing here")

    client, stream_id = await called(fail)
    assert (client.status(stream_id), client.headers(stream_id)["grpc-message"]) == (NOT_FOUND, "nothing here")


@pytest.mark.parametrize("aborts", [False, True])
async def test_handler_whose_metadata_cannot_be_sent_ends_with_unknown(aborts: bool) -> None:
    async def fail(_request: bytes, call: ServerCall) -> bytes:
        metadata = (("größe", "1"),)
        if aborts:
            await call.abort(grpc.StatusCode.NOT_FOUND, "", metadata)
        call.set_trailing_metadata(metadata)
        return b""

    client, stream_id = await called(fail)
    assert client.status(stream_id) == UNKNOWN
    assert client.nothing_left()


async def test_handler_cancelled_by_itself_ends_with_cancelled() -> None:
    async def give_up(_request: bytes, _call: ServerCall) -> bytes:
        raise asyncio.CancelledError

    client, stream_id = await called(give_up)
    assert client.status(stream_id) == CANCELLED
    assert client.nothing_left()


async def test_handler_that_continues_after_its_client_is_gone_sends_nothing() -> None:
    after: list[bool] = []

    async def go_on(_request: bytes, call: ServerCall) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await call.write(b"too late")
            after.append(call.cancelled())
        return b"too late"

    client, stream_id = await called(go_on)
    client.h2.reset_stream(stream_id)
    await client.exchange()
    assert after == [True]
    assert client.data(stream_id) == b""
    assert client.nothing_left()


async def test_handler_that_responds_early_resets_the_rest_of_the_request() -> None:
    async def at_once(_requests: AsyncIterator[bytes], _call: ServerCall) -> bytes:
        return b"enough"

    client = Http2Client(finder({"/t/Method": grpc.stream_unary_rpc_method_handler(at_once)}), limits=LIMITS)
    stream_id = client.open("/t/Method", end=False)
    await client.exchange()
    assert (client.data(stream_id), client.status(stream_id)) == (framed(b"enough"), OK)
    assert client.reset_code(stream_id) is ErrorCodes.NO_ERROR
    assert client.nothing_left()


@pytest.mark.parametrize("content_type", ["text/plain", ""])
async def test_request_of_another_content_type_is_not_supported(content_type: str) -> None:
    client = Http2Client(finder(KINDS), limits=LIMITS)
    stream_id = client.open("/t/Double", message=None, content_type=content_type)
    await client.exchange()
    assert client.headers(stream_id)[":status"] == "415"
    assert client.nothing_left()


@pytest.mark.parametrize(
    ("header", "message", "status"),
    [(("grpc-encoding", "br"), b"\1\0\0\0\1x", UNIMPLEMENTED), (("grpc-encoding", "gzip"), b"\1\0\0\0\1x", INTERNAL)],
    ids=["unknown encoding", "broken"],
)
async def test_malformed_compressed_request_ends_its_call(header: tuple[str, str], message: bytes, status: str) -> None:
    client = Http2Client(finder(KINDS), limits=LIMITS)
    stream_id = client.open("/t/DoubleEach", header, message=None, end=False)
    client.h2.send_data(stream_id, message)
    await client.exchange()
    assert client.status(stream_id) == status
    assert client.reset_code(stream_id) is ErrorCodes.NO_ERROR
    assert client.nothing_left()


async def test_data_after_a_waiting_status_is_discarded() -> None:
    client = Http2Client(finder(KINDS), limits=LIMITS, window_bytes=1)
    stream_id = client.open("/t/DoubleEach", message=b"1", end=False)
    await client.exchange()
    client.h2.send_data(stream_id, b"\0\xff\xff\xff\xff")
    await client.exchange()
    incoming = client.connection._incoming[stream_id]
    size_bytes = len(incoming.reader._buffer)
    client.h2.send_data(stream_id, b"x" * 10_000)
    await client.exchange()
    assert len(incoming.reader._buffer) == size_bytes
    client.lose()
    assert client.nothing_left()
