"""The stream that a gateway or a replica keeps open to the router; it is reopened whenever it ends.

The router may come back at another address, so the address is resolved for every attempt. Each step has a timeout: resolving, connecting
and waiting for the first response.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Generic, Protocol, TypeVar

import structlog
from grpc import aio

from neox_serve.link.channels import LinkTls, internal_channel
from neox_serve.link.streams import Backoff, SendQueue, keep_connected, read, stop_task, until_one_ends

_log = structlog.get_logger(__name__)

ResolveRouter = Callable[[], Awaitable[str]]
"""Returns the router's host:port. It may raise any exception, and it may hang: the caller has a timeout."""

Request = TypeVar("Request")
Response = TypeVar("Response")
Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)

METRICS_INTERVAL_S = 2.0
"""Interval between two metrics messages from a peer to the router."""
_RESOLVE_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 2.0


class StreamCall(Protocol[Request_contra, Response_co]):
    """A bidirectional gRPC call to the router."""

    async def read(self) -> Response_co | object:
        """Returns the next response, or grpc.aio.EOF."""

    async def write(self, message: Request_contra, /) -> None:
        """Sends a request."""

    def cancel(self) -> bool:
        """Ends the call."""


class RouterLink(Generic[Request, Response]):
    """A stream to the router, reopened until `close`.

    connect: opens the stream on a channel. hello: returns the first message of a stream, with everything that the peer knows.
    response_type: type of the responses. on_response: handles each response; the first one means that the hello was accepted. on_connected:
    called after the first response was handled. on_lost: called when a stream has ended, even if it was never connected.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        resolve_router: ResolveRouter,
        connect: Callable[[aio.Channel], StreamCall[Request, Response]],
        hello: Callable[[], Request],
        response_type: type[Response],
        on_response: Callable[[Response], None],
        on_lost: Callable[[], None],
        on_connected: Callable[[], None] = lambda: None,
        rng: Random,
        tls: LinkTls | None = None,
    ) -> None:
        self._tls = tls
        self._resolve_router = resolve_router
        self._connect_stream = connect
        self._hello = hello
        self._response_type = response_type
        self._on_response = on_response
        self._on_lost = on_lost
        self._on_connected = on_connected
        self._backoff = Backoff(rng)
        self._send_queue: SendQueue[Request] | None = None
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        """Whether the router has accepted the hello and the stream has not ended since."""

    def start(self) -> None:
        """Starts to connect, in a background task."""
        self._task = asyncio.ensure_future(keep_connected(self._connect, self._backoff, "router"))

    async def close(self) -> None:
        """Ends the stream and does not reopen it."""
        await stop_task(self._task)

    def send(self, message: Request) -> None:
        """Queues a message. Drops it if there is no stream, because the next hello contains everything that matters."""
        if self._send_queue is not None:
            self._send_queue.put(message)

    async def _connect(self) -> None:
        """Runs one stream, from the hello to its end."""
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            address = await self._resolve_router()
        async with internal_channel(address, self._tls) as channel:
            call = self._connect_stream(channel)
            send_queue = SendQueue[Request]()
            send_queue.put(self._hello())
            # Changes from here on are not in the hello, so they are sent after it.
            self._send_queue = send_queue
            try:
                await until_one_ends(self._receive(call, address), send_queue.write_to(call))
            finally:
                self._send_queue = None
                self.connected = False
                call.cancel()
                self._on_lost()

    async def _receive(self, call: StreamCall[Request, Response], address: str) -> None:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            first = await read(call, self._response_type)
        self.connected = True
        self._backoff.reset()
        _log.info("router_linked", address=address)
        self._on_response(first)
        self._on_connected()
        while True:
            self._on_response(await read(call, self._response_type))
