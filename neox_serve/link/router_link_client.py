"""The stream that a gateway or a replica keeps to the router, opened again whenever it ends.

The router may come back anywhere, so its address is asked for at every attempt. Everything is bounded in time: asking, connecting,
the first answer.
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
"""Returns the router's host:port; may raise anything, and may hang: it is time-bounded."""

Request = TypeVar("Request")
Response = TypeVar("Response")
Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)

METRICS_INTERVAL_S = 2.0
"""Between two metrics texts from a peer to the router."""
_RESOLVE_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 2.0


class StreamCall(Protocol[Request_contra, Response_co]):
    """A bidirectional call to the router."""

    async def read(self) -> Response_co | object:
        """The next response, or grpc.aio.EOF."""

    async def write(self, message: Request_contra, /) -> None:
        """Sends a request."""

    def cancel(self) -> bool:
        """Ends the call."""


class RouterLink(Generic[Request, Response]):
    """A stream to the router.

    connect: opens it on a channel. hello: its first message, made anew for each stream with all that the peer knows. response_type: what
    comes back. on_response: takes each response; the first one means that the hello was accepted. on_connected: called after that.
    on_lost: the stream ended.
    """

    def __init__(  # noqa: PLR0913 - by name, each
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

    def start(self) -> None:
        """Starts to connect."""
        self._task = asyncio.ensure_future(keep_connected(self._connect, self._backoff, "router"))

    async def close(self) -> None:
        """Ends the stream for good."""
        await stop_task(self._task)

    def send(self, message: Request) -> None:
        """Sends a message after those before it. Without a stream it is dropped: the next hello says all that counts."""
        if self._send_queue is not None:
            self._send_queue.put(message)

    async def _connect(self) -> None:
        """One stream, from hello to its end."""
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            address = await self._resolve_router()
        async with internal_channel(address, self._tls) as channel:
            call = self._connect_stream(channel)
            send_queue = SendQueue[Request]()
            send_queue.put(self._hello())
            # From here on what changes is sent, in order after the hello that does not have it.
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
