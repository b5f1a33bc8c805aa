"""A gRPC server on one port. Handlers are grpc's own: what generated code, grpc_health and grpc_reflection register works here."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from neox_serve.transport.connection import Connection, Limits
from neox_serve.transport.framing import StatusError

_GOODBYE_S = 0.5
_BACKLOG = 4096


class Server:
    """Register handlers, then `start`, at the end `stop`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._connections: set[Connection] = set()
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []

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
            self._sockets.append(bound)
            port = bound.getsockname()[1]
        await self.listen_with(tls)
        return port

    async def listen_with(self, tls: ssl.SSLContext | None) -> None:
        """New connections get this TLS from now on. Those that are open go on, and none is refused meanwhile: the sockets stay open."""
        loop = asyncio.get_running_loop()
        before = self._listeners
        self._listeners = [await loop.create_server(self._connection, sock=one.dup(), ssl=tls, backlog=_BACKLOG) for one in self._sockets]
        for listener in before:
            listener.close()

    @property
    def connections(self) -> int:
        """Those that are open."""
        return len(self._connections)

    async def stop(self, grace_s: float) -> None:
        """Takes no new connections or calls, waits grace_s for those that run, then ends them."""
        for listener in self._listeners:
            listener.close()
        for bound in self._sockets:
            bound.close()
        for connection in self._connections:
            connection.refuse_new()
        await self._until(lambda: not any(connection.calls for connection in self._connections), grace_s)
        for connection in tuple(self._connections):
            connection.close()
        await self._until(lambda: not self._connections, _GOODBYE_S)
        for connection in tuple(self._connections):
            connection.abort()
        await self._until(lambda: not self._connections, _GOODBYE_S)

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Returns once the condition holds, or time is over."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while not condition() and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - a condition over all connections
            await asyncio.sleep(0.005)

    def _connection(self) -> Connection:
        return Connection(limits=self._limits, find_handler=self._find, on_open=self._connections.add, on_closed=self._connections.discard)

    def _find(self, path: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """Raises StatusError where there is none."""
        if (handler := self._found.get(path)) is not None:
            return handler
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"no method {path}")
