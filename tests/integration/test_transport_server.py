"""The transport on uvloop, as gateways run it, with grpc's own clients on the other end."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import uvloop

from neox_serve.transport.call import ServerCall
from neox_serve.transport.connection import Limits
from neox_serve.transport.server import Server

LIMITS = Limits(most_message_bytes=5_000_000, most_streams=1000)


async def count(request: bytes, call: ServerCall) -> None:
    for number in range(int(request)):
        await call.write(b"%d" % number)


async def echo(request: bytes, _call: ServerCall) -> bytes:
    return request


async def serve(started: "asyncio.Queue[int]", loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    server = Server(LIMITS)
    handlers: dict[str, Any] = {"Count": grpc.unary_stream_rpc_method_handler(count), "Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_registered_method_handlers("t", handlers)
    port = await server.start("127.0.0.1", 0)
    loop.call_soon_threadsafe(started.put_nowait, port)
    await stop.wait()
    await server.stop(1.0)


@pytest.fixture
async def address() -> Any:
    """Of a server on a uvloop of its own."""
    started: asyncio.Queue[int] = asyncio.Queue()
    stop, loop, own = asyncio.Event(), asyncio.get_running_loop(), uvloop.new_event_loop()
    thread = threading.Thread(target=own.run_until_complete, args=(serve(started, loop, stop),))
    thread.start()
    try:
        yield f"127.0.0.1:{await asyncio.wait_for(started.get(), 20)}"
    finally:
        own.call_soon_threadsafe(stop.set)
        await asyncio.to_thread(thread.join, 20)
        own.close()
    assert not thread.is_alive()


async def test_many_streams_of_an_asyncio_client_are_whole(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_stream("/t/Count")

        async def read() -> list[bytes]:
            return [message async for message in method(b"50")]

        answers = await asyncio.wait_for(asyncio.gather(*(read() for _ in range(200))), 60)
    assert answers == [[b"%d" % number for number in range(50)]] * 200


async def test_blocking_client_gets_a_large_message_back(address: str) -> None:
    message = bytes(range(256)) * 16_000

    def ask() -> Iterator[bytes]:
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(address, options, compression=grpc.Compression.Gzip) as channel:
            method: Any = channel.unary_unary("/t/Echo")
            yield method(message, timeout=30)

    (answer,) = await asyncio.to_thread(lambda: list(ask()))
    assert answer == message
