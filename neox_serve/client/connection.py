"""How the client connects: channel options, TLS, and the translation of connection errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from neox_serve.client.retry import UNREACHABLE
from neox_serve.core.errors import Reason, ServeError
from neox_serve.wire.status import from_rpc_error

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""The address that `neox-serve up` listens on by default."""

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS with PEM files."""

    root_ca: Path | None = None
    """Root certificates to trust; None: the system's."""
    certificate: Path | None = None
    """The client's own certificate, if the server requires one."""
    key: Path | None = None
    """Private key of `certificate`."""
    server_name: str | None = None
    """Name that the server's certificate must have; None: the host in the address."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be given together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError."""
        root_ca, key, certificate = (path.read_bytes() if path else None for path in (self.root_ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(root_ca, key, certificate)


def call_metadata(api_key: str | None, metadata: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """The metadata of every call: the credential and the caller's own entries."""
    credential = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    return (*credential, *(metadata or {}).items())


def channel_options(tls: Tls | None, *, health_checked: bool) -> list[tuple[str, str | int]]:
    """The options of the client's channels.

    Each client opens its own connections instead of sharing them within the process, so that clients spread over the gateways behind one
    port. A ping every 30 s detects a dead peer while a generation is silent; the server accepts pings at intervals of 5 s or more. Message
    sizes have no limit here because the gateway limits requests.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(service_config(health_checked=health_checked))),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    if tls and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def service_config(*, health_checked: bool) -> dict[str, object]:
    """gRPC's service config: round_robin over all addresses that the target resolves to.

    health_checked: use only the addresses whose InferenceService is healthy.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if health_checked:
        config["healthCheckConfig"] = {"serviceName": "neox_serve.v1.InferenceService"}
    return config


def translate(error: grpc.RpcError, address: str) -> ServeError:
    """The ServeError for a failed call. If the failure did not come from the service, its metadata has the key `unreachable`."""
    translated = from_rpc_error(error)
    if error.code() is not grpc.StatusCode.UNAVAILABLE or _has_details(error):
        return translated
    return ServeError(
        Reason.NO_READY_REPLICA, f"no connection to {address}: {error.details() or 'no details'}", metadata={UNREACHABLE: address}
    )


def _has_details(error: grpc.RpcError) -> bool:
    trailing: Any = error.trailing_metadata() or ()
    return any(key == _DETAILS_KEY for key, _ in trailing)
