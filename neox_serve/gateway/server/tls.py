"""TLS of the public port, loaded from the files in the settings and reloaded when they change."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neox_serve.settings import SettingsError
from neox_serve.settings.gateway import GatewaySettings


def server_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """Returns the TLS context of the port, or None for plain text. Raises SettingsError naming the setting whose file is unusable."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    _use("gateway.tls_certificate", settings.tls_certificate, Path.read_bytes)
    _use("gateway.tls_key", settings.tls_key, lambda key: context.load_cert_chain(settings.tls_certificate or "", key))
    if settings.tls_client_ca is not None:
        _use("gateway.tls_client_ca", settings.tls_client_ca, context.load_verify_locations)
        context.verify_mode = ssl.CERT_REQUIRED if settings.tls_client_certificates == "required" else ssl.CERT_OPTIONAL
    return context


class TlsFiles:
    """Detects changes of the TLS files."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._paths = [path for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca) if path]
        self._seen = self._state()

    def reloaded(self) -> ssl.SSLContext | None:
        """Returns a new TLS context once after each change of the files, else None. Raises SettingsError if they do not match (yet)."""
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        return server_context(self._settings)

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_fingerprint(path) for path in self._paths]


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    """Returns values that change whenever the file does; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _use(setting: str, path: Path, action: Callable[[Path], Any]) -> None:
    try:
        action(path)
    except OSError as error:  # includes ssl.SSLError
        raise SettingsError(f"{setting}: cannot use {path}: {error.strerror}") from error
