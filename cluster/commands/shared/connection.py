"""The options that say which gateway to call, the same on every command that calls one."""

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from cluster.commands.shared.failures import CommandError
from cluster.commands.shared.settings import ConfigOption, effective

if TYPE_CHECKING:
    from neox_serve.client import Client, Tls

P = ParamSpec("P")

_LOOK_S = 0.05
_GOODBYE_S = 5.0


@dataclass(frozen=True, slots=True)
class Connection:
    """Which gateway to call, and how. config: the settings file that was named. api_key: or a token; None where none is shown."""

    address: str
    tls: "Tls | None" = None
    config: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    _clients: "list[Client]" = field(default_factory=list, repr=False)

    @property
    def shows_credential(self) -> bool:
        """Whether it stands for a tenant of its own."""
        return self.api_key is not None or (self.tls is not None and self.tls.certificate is not None)

    def client(self) -> "Client":
        """A client for it; nothing is sent yet."""
        from neox_serve.client import Client

        self._clients.append(Client(self.address, tls=self.tls, api_key=self.api_key))
        return self._clients[-1]

    def close(self) -> None:
        """Closes the clients it gave, and so ends their calls."""
        for client in self._clients:
            client.close()


def connected(command: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Gives a command the options of `_choose` and hands it, first, the Connection that they make."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        connection = _choose(**{name: values.pop(name) for name in options})
        command(connection, **values)  # type: ignore[call-arg]

    options = inspect.signature(_choose, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [*(it.replace(kind=inspect.Parameter.KEYWORD_ONLY) for it in own), *options.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def interruptible(command: Callable[Concatenate[Connection, P], None]) -> Callable[Concatenate[Connection, P], None]:
    """Has Ctrl-C end a command's calls at once.

    The command runs on a thread: KeyboardInterrupt, raised in the main one, would leave a lock of gRPC's behind that closing waits for.
    """

    @functools.wraps(command)
    def run(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> None:
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                command(connection, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is the main thread's
                outcome.append(error)
            else:
                outcome.append(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_LOOK_S)
        except KeyboardInterrupt:
            connection.close()
            thread.join(_GOODBYE_S)
            raise
        if outcome[0] is not None:
            raise outcome[0]

    return run


def _choose(
    *,
    address: Annotated[
        str | None, typer.Option("--address", "-a", metavar="HOST:PORT", help="Gateway to call; absent: the settings' host and port.")
    ] = None,
    config: ConfigOption = None,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS, trusting the system's roots; implied by the options below.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM roots to trust instead.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM certificate to show, with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM key of --tls-certificate.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the API key to show; absent: as the settings' client section says."),
    ] = None,
) -> Connection:
    address = address or _address_in_settings(config)
    api_key = _api_key(config, api_key_file or effective(config).client.api_key_file)
    if not (tls or tls_ca or tls_certificate or tls_key):
        return Connection(address, None, config, api_key)
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key must be given together")
    from neox_serve.client import Tls

    return Connection(address, Tls(tls_ca, tls_certificate, tls_key), config, api_key)


def _api_key(config: Path | None, file: Path | None) -> str | None:
    client = effective(config).client
    if file is None:
        return client.api_key.get_secret_value() if client.api_key else None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"the API key cannot be read from {file}: {error}") from error


def _address_in_settings(config: Path | None) -> str:
    from neox_serve.settings import connect_address

    gateway = effective(config).gateway
    return connect_address(gateway.host, gateway.port)
