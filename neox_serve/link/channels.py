"""How the internal gRPC connections are set up: keepalive, message sizes, addresses, and TLS where it is wished."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

_MESSAGE_BYTES = 64 * 1024 * 1024
_KEEPALIVE_MS = 2_000
"""A peer whose machine vanished is found after this and the timeout; one whose process died is found at once, by its closed socket."""
_KEEPALIVE_TIMEOUT_MS = 3_000

_COMMON = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    # Of the bandwidth probes: while one is unanswered, no keepalive ping is sent, and by default it may stay so for a minute.
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER = (
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    # A stale process on the port must be noticed and not take a share of the connections.
    ("grpc.so_reuseport", 0),
)
_CLIENT = (
    *_COMMON,
    # Channels of one process share connections, and how long these back off, unless told otherwise; our own loops do the backing off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
)

_WILDCARDS = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104  compared with, not bound to


@dataclass(frozen=True, slots=True)
class LinkTls:
    """Mutual TLS of the internal links: PEM files, the same authority on both sides. server_name: what every certificate carries.

    Files are read at each connection, so those that replace them count from the next one on.
    """

    certificate: Path
    key: Path
    ca: Path
    server_name: str

    def server_credentials(self) -> grpc.ServerCredentials:
        """Raises OSError where a file cannot be read."""
        first = self._server_files()
        return grpc.dynamic_ssl_server_credentials(first, self._newest, require_client_authentication=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError where a file cannot be read."""
        ca, key, certificate = (path.read_bytes() for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _server_files(self) -> grpc.ServerCertificateConfiguration:
        ca, key, certificate = (path.read_bytes() for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)

    def _newest(self) -> Any:
        """Called by grpc at each handshake, from a thread of its; None: as before, which its types do not know."""
        try:
            return self._server_files()
        except OSError:
            return None


def internal_server() -> aio.Server:
    """A server for internal links, not started."""
    return aio.server(options=_SERVER)


def internal_channel(address: str, tls: LinkTls | None = None) -> aio.Channel:
    """A channel to host:port. Raises OSError where a file of TLS cannot be read."""
    if tls is None:
        return aio.insecure_channel(address, options=_CLIENT)
    return aio.secure_channel(address, tls.channel_credentials(), options=(*_CLIENT, ("grpc.ssl_target_name_override", tls.server_name)))


def bind(server: aio.Server, host: str, port: int, tls: LinkTls | None = None) -> str:
    """Binds the server (port 0: any free one) and returns the host:port that peers should call. Raises OSError where it cannot."""
    address = f"{host or '0.0.0.0'}:{port}"  # noqa: S104  the caller's choice
    try:
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls.server_credentials())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}") from error
    return f"{_reachable_host(host)}:{bound}"


def _reachable_host(host: str) -> str:
    """The host itself, or for a wildcard the address of the interface that leads outward."""
    if host not in _WILDCARDS:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def closed_status(error: grpc.RpcError) -> str:
    """Code and details of a failed call, for logs."""
    return f"{error.code().name}: {error.details()}" if isinstance(error, aio.AioRpcError) else repr(error)
