"""How the client connects: channel options, TLS, and what an error of the connection means."""

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
"""Where `neox-serve up` listens unless it is told otherwise."""

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS with PEM files. root_ca None: the system's. certificate and key: the client's own, where the server asks for one.

    server_name: the name the server's certificate must carry, where it is not the address's host.
    """

    root_ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be given together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError."""
        root_ca, key, certificate = (path.read_bytes() if path else None for path in (self.root_ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(root_ca, key, certificate)


def call_metadata(api_key: str | None, metadata: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call."""
    credential = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    return (*credential, *(metadata or {}).items())


def channel_options(tls: Tls | None, *, health_checked: bool) -> list[tuple[str, str | int]]:
    """Options of every channel of ours.

    Each client has connections of its own (no sharing within the process), so that gateways behind one port share out clients. Pings every
    30 s find a dead peer under a silent generation; the server allows them from 5 s on. Response sizes are bounded by the request's limits.
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
    """round_robin over all addresses that the target resolves to, on request over those alone whose InferenceService is healthy."""
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if health_checked:
        config["healthCheckConfig"] = {"serviceName": "neox_serve.v1.InferenceService"}
    return config


def translate(error: grpc.RpcError, address: str) -> ServeError:
    """The ServeError behind an error of a call; one that never came from the service has metadata `unreachable`."""
    translated = from_rpc_error(error)
    if error.code() is not grpc.StatusCode.UNAVAILABLE or _has_details(error):
        return translated
    return ServeError(
        Reason.NO_READY_REPLICA, f"no connection to {address}: {error.details() or 'no details'}", metadata={UNREACHABLE: address}
    )


def _has_details(error: grpc.RpcError) -> bool:
    trailing: Any = error.trailing_metadata() or ()
    return any(key == _DETAILS_KEY for key, _ in trailing)
