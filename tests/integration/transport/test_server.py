"""The transport's server on its own uvloop, as in a gateway, with clients of grpc and plain sockets."""

import asyncio
import concurrent.futures
import resource
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from neox_serve.transport.call import ServerCall
from neox_serve.transport.connection import Limits
from neox_serve.transport.server import Server
from tests.fakes.certificates import make_authority

LIMITS = Limits(max_message_bytes=5_000_000, max_streams=1000)
PATIENCE_S = 30
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Served:
    """A server on an event loop in a thread. Held calls wait for `gate`, and set `started` and `cancelled`."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.server = Server(LIMITS)
        self.server.add_registered_method_handlers("t", self._handlers())
        self._gate = asyncio.Event()
        self.started = threading.Event()
        self.cancelled = threading.Event()

    def start(self, tls: ssl.SSLContext | None = None) -> int:
        """Returns the port."""
        self._thread.start()
        return int(self.soon(self.server.start("127.0.0.1", 0, tls)).result(PATIENCE_S))

    def soon(self, work: Coroutine[Any, Any, Any]) -> "concurrent.futures.Future[Any]":
        """Runs a coroutine on the server's loop, after those submitted before."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self, grace_s: float) -> "concurrent.futures.Future[Any]":
        return self.soon(self.server.stop(grace_s))

    async def open_gate(self) -> None:
        self._gate.set()

    def end(self) -> None:
        """Stops the loop and its thread."""
        self.stop(0.0).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._loop.close()

    def _handlers(self) -> dict[str, Any]:
        return {
            "Echo": grpc.unary_unary_rpc_method_handler(_echo),
            "Count": grpc.unary_stream_rpc_method_handler(_count),
            "Each": grpc.stream_stream_rpc_method_handler(_each),
            "Break": grpc.unary_unary_rpc_method_handler(_break_down),
            "Held": grpc.unary_unary_rpc_method_handler(self._hold),
        }

    async def _hold(self, request: bytes, _call: ServerCall) -> bytes:
        self.started.set()
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request


async def _echo(request: bytes, call: ServerCall) -> bytes:
    call.set_trailing_metadata(call.invocation_metadata())
    return request


async def _count(request: bytes, call: ServerCall) -> None:
    for number in range(int(request)):
        await call.write(b"%d" % number)


async def _each(requests: AsyncIterator[bytes], _call: ServerCall) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


async def _break_down(_request: bytes, _call: ServerCall) -> bytes:
    raise ValueError("secret")


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.end()


@pytest.fixture
def address(served: Served) -> str:
    return f"127.0.0.1:{served.start()}"


async def test_many_streams_of_an_asyncio_client_are_complete(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_stream("/t/Count")

        async def read() -> list[bytes]:
            return [message async for message in method(b"50")]

        answers = await asyncio.wait_for(asyncio.gather(*(read() for _ in range(200))), 60)
    assert answers == [[b"%d" % number for number in range(50)]] * 200


async def test_bidirectional_stream_gets_a_response_to_each_message(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.stream_stream("/t/Each")
        call = method(timeout=PATIENCE_S)
        for word in (b"a", b"b"):
            await call.write(word)
            assert await call.read() == word.upper()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


def test_connection_without_file_descriptors_is_accepted_later(address: str) -> None:
    host, port = address.split(":")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as early:
        early.settimeout(PATIENCE_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (early.fileno() + 1, hard))
        try:
            early.connect((host, int(port)))
            early.sendall(PREFACE)
            assert not select.select([early], [], [], 0.2)[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert early.recv(9)
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary("/t/Echo")
        assert method(b"still here", timeout=PATIENCE_S) == b"still here"


@pytest.mark.parametrize("compression", grpc.Compression)
def test_blocking_client_receives_a_large_message(address: str, compression: grpc.Compression) -> None:
    message = bytes(range(256)) * 16_000
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)], compression=compression) as channel:
        method: Any = channel.unary_unary("/t/Echo")
        assert method(message, timeout=PATIENCE_S) == message


def test_metadata_goes_both_ways(address: str) -> None:
    sent = (("mine", "1"), ("raw-bin", bytes(range(256))), ("raw-bin", b""))
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary("/t/Echo")
        _, call = method.with_call(b"", metadata=sent, timeout=PATIENCE_S)
    got = [(key, value) for key, value in call.trailing_metadata() if key in {"mine", "raw-bin"}]
    assert got == list(sent)


@pytest.mark.parametrize(
    ("method", "request_bytes", "code", "details"),
    [
        ("/t/None", b"", grpc.StatusCode.UNIMPLEMENTED, "unknown method /t/None"),
        ("/t/Break", b"", grpc.StatusCode.UNKNOWN, "ValueError"),
        ("/t/Echo", b"x" * 5_000_001, grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5000001 vs. 5000000)"),
    ],
    ids=["unknown method", "handler raises", "message too large"],
)
def test_unserved_call_gets_its_status(address: str, method: str, request_bytes: bytes, code: grpc.StatusCode, details: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            call(request_bytes, timeout=PATIENCE_S)
    error: Any = caught.value
    assert (error.code(), error.details()) == (code, details)


def test_client_deadline_ends_the_call_and_its_handler(served: Served, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary("/t/Held")
        with pytest.raises(grpc.RpcError) as caught:
            method(b"", timeout=0.2)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert served.cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize("way", ["cancel", "loss"])
def test_cancelled_call_cancels_its_handler(served: Served, address: str, way: str) -> None:
    channel = grpc.insecure_channel(address)
    method: Any = channel.unary_unary("/t/Held")
    call = method.future(b"")
    assert served.started.wait(PATIENCE_S)
    if way == "cancel":
        call.cancel()
    else:
        channel.close()
    assert served.cancelled.wait(PATIENCE_S)
    channel.close()


def test_stop_waits_for_running_calls_and_refuses_new_ones(served: Served, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        held: Any = channel.unary_unary("/t/Held")
        running = held.future(b"done", timeout=PATIENCE_S)
        assert served.started.wait(PATIENCE_S)
        stopped = served.stop(PATIENCE_S)
        served.soon(asyncio.sleep(0)).result(PATIENCE_S)  # after this, it has begun to stop
        late: Any = channel.unary_unary("/t/Echo")
        with pytest.raises(grpc.RpcError) as caught:
            late(b"", timeout=PATIENCE_S)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopped.done()
        served.soon(served.open_gate())
        assert running.result(PATIENCE_S) == b"done"
        stopped.result(PATIENCE_S)


def test_stop_cancels_calls_that_outlast_the_grace(served: Served, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        held: Any = channel.unary_unary("/t/Held")
        running = held.future(b"", timeout=PATIENCE_S)
        assert served.started.wait(PATIENCE_S)
        served.stop(0.0).result(PATIENCE_S)
        assert running.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert served.cancelled.wait(PATIENCE_S)


def test_client_without_http2_is_disconnected(address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        while client.recv(4096):
            pass


def _tls(folder: Path) -> tuple[ssl.SSLContext, bytes]:
    """Returns the TLS context of a server, and the authority's certificate for clients."""
    root, pair = make_authority(folder, ("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2"])
    return context, root.read_bytes()


def test_tls_client_is_served(served: Served, tmp_path: Path) -> None:
    context, root = _tls(tmp_path)
    port = served.start(context)
    credentials = grpc.ssl_channel_credentials(root)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, [("grpc.ssl_target_name_override", "localhost")]) as channel:
        method: Any = channel.unary_unary("/t/Echo")
        assert method(b"hi", timeout=PATIENCE_S) == b"hi"


def test_frequent_tls_changes_lose_no_connection(served: Served, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
    contexts = [_tls(folder)[0] for folder in folders]
    port = served.start(contexts[0])
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_alpn_protocols(["h2"])
    changing = served.soon(_change_tls(served, contexts))

    def connect(_: int) -> bytes | None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as bare, client.wrap_socket(bare) as secured:
            return secured.getpeercert(binary_form=True)

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        shown = list(clients.map(connect, range(400)))
    changing.cancel()
    assert len(set(shown)) == 2


async def _change_tls(served: Served, contexts: list[ssl.SSLContext]) -> None:
    for context in cycle(contexts):
        served.server.use_tls(context)
        await asyncio.sleep(0)


def test_tls_client_without_alpn_h2_is_disconnected(served: Served, tmp_path: Path) -> None:
    context, root = _tls(tmp_path)
    port = served.start(context)
    with pytest.raises(OSError, match=r"EOF|reset|Broken"):
        _talk(port, ssl.create_default_context(cadata=root.decode()))


def _talk(port: int, context: ssl.SSLContext) -> None:
    """Connects and reads until the end. Raises OSError if the TLS connection was not closed properly."""
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE_S) as bare,
        context.wrap_socket(bare, server_hostname="localhost", suppress_ragged_eofs=False) as client,
    ):
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        while client.recv(4096):
            pass
