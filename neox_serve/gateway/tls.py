"""TLS of the public port, from the files that the settings name."""

from pathlib import Path

import grpc

from neox_serve.settings import GatewaySettings, SettingsError


def server_credentials(settings: GatewaySettings) -> grpc.ServerCredentials | None:
    """Credentials for the port, None for plain text. Raises SettingsError naming the setting whose file cannot be read."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    certificate = _read("gateway.tls_certificate", settings.tls_certificate)
    key = _read("gateway.tls_key", settings.tls_key)
    if settings.tls_client_ca is None:
        return grpc.ssl_server_credentials([(key, certificate)])
    client_ca = _read("gateway.tls_client_ca", settings.tls_client_ca)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=client_ca, require_client_auth=True)


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: cannot read {path}: {error.strerror}") from error
