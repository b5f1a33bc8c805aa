"""How a run reaches the cluster: the address of a gateway and the credentials to present to it."""

from dataclasses import dataclass, field
from pathlib import Path

from deployments.jobs.failures import JobError
from neox_serve.client import Tls
from neox_serve.core.jobs.options import option


@dataclass(frozen=True, slots=True)
class Access:
    """The gateway that a run calls. Raises ValueError if only one of `tls_certificate` and `tls_key` is set."""

    address: str = field(default="", metadata=option("Gateway to call, as HOST:PORT."))
    api_key_file: Path | None = field(default=None, metadata=option("File that contains the API key to present."))
    tls: bool = field(default=False, metadata=option("Use TLS. Implied by the other TLS options."))
    tls_ca: Path | None = field(default=None, metadata=option("PEM file of root certificates to trust instead of the system's."))
    tls_certificate: Path | None = field(default=None, metadata=option("PEM file of the client certificate to present."))
    tls_key: Path | None = field(default=None, metadata=option("PEM file of the client certificate's private key."))

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")

    @property
    def client_tls(self) -> Tls | None:
        """The client's TLS settings; None for plain text."""
        if not (self.tls or self.tls_ca or self.tls_certificate):
            return None
        return Tls(self.tls_ca, self.tls_certificate, self.tls_key)

    def api_key(self) -> str | None:
        """Reads the API key; None if there is none to present. Raises JobError if the file cannot be read."""
        if self.api_key_file is None:
            return None
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"cannot read the API key from {self.api_key_file}: {error}", 2) from error
