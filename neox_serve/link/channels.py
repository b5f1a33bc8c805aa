"""Set-up of the internal gRPC connections: keepalive, message sizes, addresses and mutual TLS."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

_MESSAGE_BYTES = 64 * 1024 * 1024
"""Maximum size of a message in either direction."""
_KEEPALIVE_MS = 2_000
"""A vanished machine is noticed after this interval plus the timeout. A process that died is noticed at once, by its closed socket."""
_KEEPALIVE_TIMEOUT_MS = 3_000
"""Longest wait for the reply to a keepalive ping."""

_COMMON = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    # Timeout of bandwidth probes. No keepalive ping is sent while a probe is unanswered, by default for up to a minute.
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER = (
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    # Binding must fail if another process still listens on the port; it would otherwise get a share of the connections.
    ("grpc.so_reuseport", 0),
)
_CLIENT = (
    *_COMMON,
    # By default channels of one process share connections and their backoff. Reconnection is up to keep_connected instead.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
)

_WILDCARDS = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104  only compared with


@dataclass(frozen=True, slots=True)
class LinkTls:
    """Mutual TLS of the internal links, with one certificate authority for both sides.

    Files are read at each connection, so replaced files take effect with the next connection.
    """

    certificate: Path
    """PEM file of this process's certificate chain."""
    key: Path
    """PEM file of its private key."""
    ca: Path
    """PEM file of the authority that has signed all certificates."""
    server_name: str
    """DNS name that all certificates carry."""

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials that require client certificates. Raises OSError if a file cannot be read."""
        first = self._server_files()
        return grpc.dynamic_ssl_server_credentials(first, self._newest, require_client_authentication=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Returns a client's credentials. Raises OSError if a file cannot be read."""
        ca, key, certificate = (path.read_bytes() for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _server_files(self) -> grpc.ServerCertificateConfiguration:
        ca, key, certificate = (path.read_bytes() for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)

    def _newest(self) -> Any:
        """Called by grpc at each handshake, in its own thread. None keeps the previous configuration; grpc's types do not say so."""
        try:
            return self._server_files()
        except OSError:
            return None


def internal_server() -> aio.Server:
    """Returns a server for internal links. It is not started."""
    return aio.server(options=_SERVER)


def internal_channel(address: str, tls: LinkTls | None = None) -> aio.Channel:
    """Returns a channel to host:port. Raises OSError if a TLS file cannot be read."""
    if tls is None:
        return aio.insecure_channel(address, options=_CLIENT)
    return aio.secure_channel(address, tls.channel_credentials(), options=(*_CLIENT, ("grpc.ssl_target_name_override", tls.server_name)))


def bind(server: aio.Server, host: str, port: int, tls: LinkTls | None = None) -> str:
    """Binds the server and returns the host:port that peers should call. Port 0 is any free port. Raises OSError if binding fails."""
    address = f"{host or '0.0.0.0'}:{port}"  # noqa: S104  the caller chooses
    try:
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls.server_credentials())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}") from error
    return f"{_reachable_host(host)}:{bound}"


def _reachable_host(host: str) -> str:
    """Returns the host itself or, for a wildcard, the address of the interface with the default route."""
    if host not in _WILDCARDS:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # a datagram socket sends nothing on connect
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def closed_status(error: grpc.RpcError) -> str:
    """Returns status code and details of a failed call, for logs."""
    return f"{error.code().name}: {error.details()}" if isinstance(error, aio.AioRpcError) else repr(error)
