"""How jobs that call the cluster reach it, on their command lines."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.jobs.failures import JobError
from neox_serve.client import Tls


@dataclass(frozen=True, slots=True)
class Access:
    """address: of a gateway. api_key_file: holds the credential to show, read when the job begins; None where none is shown."""

    address: str
    tls: Tls | None = None
    api_key_file: Path | None = None

    def api_key(self) -> str | None:
        """Raises JobError."""
        if self.api_key_file is None:
            return None
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"the API key cannot be read from {self.api_key_file}: {error}", 2) from error

    def arguments(self) -> list[str]:
        """From which `taken` makes it again."""
        arguments = ["--address", self.address]
        arguments += ["--api-key-file", str(self.api_key_file)] if self.api_key_file else []
        if self.tls:
            files = {"--tls-ca": self.tls.root_ca, "--tls-certificate": self.tls.certificate, "--tls-key": self.tls.key}
            arguments += ["--tls", *(part for name, path in files.items() if path for part in (name, str(path)))]
        return arguments


def add_arguments(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """The options of a command line. needed: whether it must say where."""
    parser.add_argument("--address", required=needed, default="", help="gateway, host:port")
    parser.add_argument("--api-key-file", type=Path, help="file with the API key to show")
    parser.add_argument("--tls", action="store_true", help="speak TLS")
    for name, text in (("ca", "PEM roots to trust"), ("certificate", "PEM certificate to show"), ("key", "PEM key of it")):
        parser.add_argument(f"--tls-{name}", type=Path, help=text)


def taken(values: dict[str, Any]) -> Access:
    """What the options said, which are taken out of the values."""
    files = tuple(values.pop(f"tls_{name}") for name in ("ca", "certificate", "key"))
    tls = values.pop("tls") or any(files)
    return Access(values.pop("address"), Tls(*files) if tls else None, values.pop("api_key_file"))
