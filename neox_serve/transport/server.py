"""A gRPC server on one port. It takes grpc's own handler objects, so generated code, grpc_health and grpc_reflection work with it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import grpc
import structlog

from neox_serve.transport.connection import Connection, Limits
from neox_serve.transport.framing import StatusError

_CLOSE_TIMEOUT_S = 0.5
"""Time for connections to close after their GOAWAY, and again after they are aborted."""
_BACKLOG = 4096
"""Connections that the kernel holds until they are accepted."""
_RETRY_ACCEPT_S = 1.0
"""Pause after a connection could not be accepted."""
_log = structlog.get_logger(__name__)


class Server:
    """A server. Register handlers, then call `start`, and `stop` at the end."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._connections: set[Connection] = set()
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Does nothing. Generated code calls it in addition to `add_registered_method_handlers`, with the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]) -> None:
        """Registers the handlers of a service by method name, as in grpc.aio.Server."""
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listens with SO_REUSEPORT, on a free port if `port` is 0. Returns the port. Raises OSError if it cannot listen."""
        loop = asyncio.get_running_loop()
        for family, *_, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            bound = socket.create_server((address[0], port), family=family, backlog=_BACKLOG, reuse_port=True)
            bound.setblocking(False)
            self._sockets.append(bound)
            port = bound.getsockname()[1]
        self._tls = tls
        self._accepting = [asyncio.create_task(self._accept(bound)) for bound in self._sockets]
        return port

    def use_tls(self, tls: ssl.SSLContext | None) -> None:
        """Uses this TLS context for new connections. Open connections keep theirs."""
        self._tls = tls

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    async def stop(self, grace_s: float) -> None:
        """Refuses new connections and calls, waits up to `grace_s` for running calls, then ends them."""
        self._refuse_new()
        await _cancelled(self._accepting)
        await _cancelled(self._opening)
        for bound in self._sockets:
            bound.close()
        self._refuse_new()
        await self._until(lambda: not any(connection.calls for connection in self._connections), grace_s)
        for connection in tuple(self._connections):
            connection.close()
        await self._until(lambda: not self._connections, _CLOSE_TIMEOUT_S)
        for connection in tuple(self._connections):
            connection.abort()
        await self._until(lambda: not self._connections, _CLOSE_TIMEOUT_S)

    def _refuse_new(self) -> None:
        for connection in self._connections:
            connection.refuse_new()

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Returns once the condition holds or the time is up."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while not condition() and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - a condition over all connections
            await asyncio.sleep(0.005)

    async def _accept(self, bound: socket.socket) -> None:
        """Accepts connections for ever.

        An asyncio server cannot change its TLS context. It would have to be closed, and lose the connections that it has just accepted.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(bound)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # For example, out of file descriptors or memory. The connection stays in the backlog.
                _log.warning("accept_failed", error=error.strerror)
                await asyncio.sleep(_RETRY_ACCEPT_S)
                continue
            task = asyncio.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        """Opens a connection. A failure before that, for example in the TLS handshake, affects no other connection."""
        with contextlib.suppress(OSError):  # includes ssl.SSLError and ConnectionError
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, accepted, ssl=self._tls)

    def _connection(self) -> Connection:
        return Connection(limits=self._limits, find_handler=self._find, on_open=self._connections.add, on_closed=self._connections.discard)

    def _find(self, path: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns the handler of a path. Raises StatusError if there is none."""
        if (handler := self._handlers.get(path)) is not None:
            return handler
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {path}")


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
