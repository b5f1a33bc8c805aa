"""What the commands ask of the installation that they run in: a client on its own, or the whole server.

The client's installation has no settings files, no database access and no job code. The server's (`cluster.installation`) has all three.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neox_serve.cli.errors import CommandError, explain

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from neox_serve.core.jobs.rows import RowsWork

AdminCall = Callable[["Message"], Any]
"""Calls the AdminService method that takes this request, and returns its response."""

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", "50051"
SERVER_HINT = 'install the server: `pip install "neox-serve[cpu]"`, or neox-serve[gpu] on a machine with GPUs'
"""Ends the messages about what only the server can do."""


@dataclass(frozen=True, slots=True)
class ConnectionDefaults:
    """What a command uses if its options do not say which gateway to call."""

    address: str
    """host:port of the gateway."""
    api_key: str | None = field(default=None, repr=False)
    """The API key or token to send; None: no credential."""
    api_key_file: Path | None = None
    """A file that holds the API key. Set only if `api_key` is None."""


class ClientInstallation:
    """The installation of the client on its own. Everything that only the server can do raises CommandError."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment

    def connection_defaults(self, config: Path | None) -> ConnectionDefaults:
        """Reads the environment variables that the server's settings have too: gateway host and port, API key or its file."""
        _refuse_settings_file(config)
        host = self._environment.get("NEOX_SERVE_GATEWAY__HOST", DEFAULT_HOST)
        port = self._environment.get("NEOX_SERVE_GATEWAY__PORT", DEFAULT_PORT)
        key, file = self._environment.get("NEOX_SERVE_CLIENT__API_KEY"), self._environment.get("NEOX_SERVE_CLIENT__API_KEY_FILE")
        if key and file:
            raise CommandError("set only one of NEOX_SERVE_CLIENT__API_KEY and NEOX_SERVE_CLIENT__API_KEY_FILE")
        return ConnectionDefaults(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", key, Path(file) if file else None)

    def metrics_url(self, config: Path | None) -> str:
        """Raises CommandError: only the server's settings know the address of the metrics page."""
        _refuse_settings_file(config)
        raise CommandError("name the metrics page with --url; its default comes from the settings of a server installation")

    def database_admin(self, config: Path | None) -> AdminCall:
        """Raises CommandError: only the server's installation can open the database."""
        raise CommandError(f"--direct needs the database of a cluster; {SERVER_HINT}")

    def check_rows(self, kind: str, work: "RowsWork") -> None:
        """Checks the rows of an input file before a job is created. A client leaves this to the job."""

    def explain(self, error: Exception) -> str | None:
        """The failure in words for the user; None for a bug, which keeps its traceback."""
        return explain(error)


def _refuse_settings_file(config: Path | None) -> None:
    if config is not None:
        raise CommandError(f"--config names a settings file of a server; {SERVER_HINT}, or use --address and environment variables")
