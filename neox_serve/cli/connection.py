"""The options that say which gateway to call, the same on every command that calls one."""

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from neox_serve.cli.errors import CommandError
from neox_serve.cli.installation import ClientInstallation

if TYPE_CHECKING:
    from neox_serve.client import Client, Tls

P = ParamSpec("P")

_POLL_INTERVAL_S = 0.05
_STOP_TIMEOUT_S = 5.0

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Settings file (YAML). Default: built-in values and the environment."),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """Which gateway a command calls, and how."""

    address: str
    """host:port, or any gRPC target."""
    tls: "Tls | None" = None
    """None: plain text."""
    config: Path | None = None
    """The settings file named by --config."""
    api_key: str | None = field(default=None, repr=False)
    """The API key or token to send; None: no credential."""
    installation: ClientInstallation = field(default_factory=ClientInstallation, repr=False)
    """What this machine's installation can do beyond calling a gateway."""
    _clients: "list[Client]" = field(default_factory=list, repr=False)

    @property
    def has_credential(self) -> bool:
        """Whether calls carry an API key, a token or a client certificate, and so belong to a tenant."""
        return self.api_key is not None or (self.tls is not None and self.tls.certificate is not None)

    def client(self) -> "Client":
        """A new client for this gateway. Nothing is sent before its first call."""
        from neox_serve.client import Client

        self._clients.append(Client(self.address, tls=self.tls, api_key=self.api_key))
        return self._clients[-1]

    def close(self) -> None:
        """Closes all clients made by `client`, which cancels their calls."""
        for client in self._clients:
            client.close()


def connected(command: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Adds the connection options to a command and passes it a Connection as its first argument."""

    @functools.wraps(command)
    def run(typer_context: typer.Context, **values: Any) -> None:
        connection = _connection(typer_context, **{name: values.pop(name) for name in options})
        command(connection, **values)  # type: ignore[call-arg]

    first, *added = inspect.signature(_connection, eval_str=True).parameters.values()
    options = [parameter.name for parameter in added]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [first, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def interruptible(command: Callable[Concatenate[Connection, P], None]) -> Callable[Concatenate[Connection, P], None]:
    """Makes Ctrl-C end a command's calls at once.

    The command runs in a thread. KeyboardInterrupt in the main thread during a gRPC call would leave a gRPC lock held, and closing the
    channel would then wait for that lock.
    """

    @functools.wraps(command)
    def run(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> None:
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                command(connection, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                outcome.append(error)
            else:
                outcome.append(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL_INTERVAL_S)
        except KeyboardInterrupt:
            connection.close()
            thread.join(_STOP_TIMEOUT_S)
            raise
        if outcome[0] is not None:
            raise outcome[0]

    return run


def _connection(
    typer_context: typer.Context,
    *,
    address: Annotated[
        str | None,
        typer.Option("--address", "-a", metavar="HOST:PORT", help="Gateway to call. Default: the gateway's host and port in the settings."),
    ] = None,
    config: ConfigOption = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Use TLS and trust the system's root certificates. The other --tls options imply it.")
    ] = False,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM root certificates to trust instead of the system's.")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM client certificate to present; needs --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM private key of --tls-certificate.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the API key to send. Default: the settings' client.api_key or client.api_key_file."),
    ] = None,
) -> Connection:
    installation: ClientInstallation = typer_context.obj
    defaults = installation.connection_defaults(config)
    api_key = _read_key(api_key_file) if api_key_file else defaults.api_key
    if api_key is None and defaults.api_key_file:
        api_key = _read_key(defaults.api_key_file)
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key must be given together")
    credentials = None
    if tls or tls_ca or tls_certificate:
        from neox_serve.client import Tls

        credentials = Tls(tls_ca, tls_certificate, tls_key)
    return Connection(address or defaults.address, credentials, config, api_key, installation)


def _read_key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read the API key from {file}: {error}") from error
