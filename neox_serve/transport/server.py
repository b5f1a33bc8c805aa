"""A gRPC server on one port. Handlers are grpc's own: what generated code, grpc_health and grpc_reflection register works here."""

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

_GOODBYE_S = 0.5
_BACKLOG = 4096
_RETRY_ACCEPT_S = 1.0
_log = structlog.get_logger(__name__)


class Server:
    """Register handlers, then `start`, at the end `stop`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._connections: set[Connection] = set()
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: generated code calls this too, with what it registers by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]) -> None:
        """As grpc.aio.Server has it: handlers of a service by the names of its methods."""
        for name, handler in handlers.items():
            self._found[f"/{service}/{name}"] = handler

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listens, on a port that others may share; returns the port. Raises OSError."""
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
        """New connections get this TLS from now on; those that are open go on."""
        self._tls = tls

    @property
    def connections(self) -> int:
        """Those that are open."""
        return len(self._connections)

    async def stop(self, grace_s: float) -> None:
        """Takes no new connections or calls, waits grace_s for those that run, then ends them."""
        self._refuse_new()
        await _cancelled(self._accepting)
        await _cancelled(self._opening)
        for bound in self._sockets:
            bound.close()
        self._refuse_new()
        await self._until(lambda: not any(connection.calls for connection in self._connections), grace_s)
        for connection in tuple(self._connections):
            connection.close()
        await self._until(lambda: not self._connections, _GOODBYE_S)
        for connection in tuple(self._connections):
            connection.abort()
        await self._until(lambda: not self._connections, _GOODBYE_S)

    def _refuse_new(self) -> None:
        for connection in self._connections:
            connection.refuse_new()

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Returns once the condition holds, or time is over."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while not condition() and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - a condition over all connections
            await asyncio.sleep(0.005)

    async def _accept(self, bound: socket.socket) -> None:
        """Connections as they come. asyncio's own servers are bound to one TLS: to change it, they would have to be closed, and lose the
        connections that they have just accepted.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(bound)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of file descriptors or memory, for example: it stays in the backlog meanwhile.
                _log.warning("a connection could not be accepted yet", failure=error.strerror)
                await asyncio.sleep(_RETRY_ACCEPT_S)
                continue
            task = asyncio.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        """A connection that fails before it is open, for example in the TLS handshake, concerns nobody else."""
        with contextlib.suppress(OSError):  # ssl.SSLError and ConnectionError are some
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, accepted, ssl=self._tls)

    def _connection(self) -> Connection:
        return Connection(limits=self._limits, find_handler=self._find, on_open=self._connections.add, on_closed=self._connections.discard)

    def _find(self, path: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """Raises StatusError where there is none."""
        if (handler := self._found.get(path)) is not None:
            return handler
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"no method {path}")


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
