"""`neox-serve models`, `status` and `metrics`: what is there and how it does."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neox_serve.cli.connection import ConfigOption, Connection, connected
from neox_serve.cli.console import JsonOption, print_json, print_view
from neox_serve.cli.errors import CommandError
from neox_serve.cli.installation import ClientInstallation

if TYPE_CHECKING:
    from rich.console import RenderableType

    from neox_serve.client import Client, ClusterStatus

_CALL_TIMEOUT_S = 10.0
_LOOK_S = 0.05
"""How soon Ctrl-C is heeded while a call is under way."""


@connected
def models(connection: Connection, *, as_json: JsonOption = False) -> None:
    """Show the models served, their limits and abilities."""
    with connection.client() as client:
        served = client.models(timeout_s=_CALL_TIMEOUT_S)
    if as_json:
        print_json(served)
        return
    from neox_serve.cli.views.status import models_table

    print_view(models_table(served))


@connected
def status(
    connection: Connection,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it, until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two looks, with --watch.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show pools, replicas with their load, gateways, and what is wrong."""
    with connection.client() as client:
        if watch:
            from neox_serve.cli.views.status import status_view

            _watch(client, interval_s, status_view, as_json=as_json)
        else:
            _show(client.status(timeout_s=_CALL_TIMEOUT_S), as_json=as_json)


@connected
def drain(connection: Connection, *, replica_id: Annotated[str, typer.Argument(metavar="REPLICA_ID")]) -> None:
    """Have a replica finish what it has and be replaced by a new one."""
    with connection.client() as client:
        client.drain_replica(replica_id, timeout_s=_CALL_TIMEOUT_S)
    print(f"{replica_id} drains; `neox-serve status` shows it until it is gone.")


@connected
def top(
    connection: Connection,
    *,
    interval_s: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two looks.")] = 1.0,
) -> None:
    """Watch tenants, pools and replicas at work, until Ctrl-C."""
    from neox_serve.cli.views.status import top_view

    with connection.client() as client:
        _watch(client, interval_s, top_view, screen=True)


def metrics(
    context: typer.Context,
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Metrics page (http or https). Default: the metrics host and port in the settings.")
    ] = None,
) -> None:
    """Print the cluster's metrics in the Prometheus text format."""
    print(fetch_metrics(url, config, context.obj), end="")


def fetch_metrics(url: str | None, config: Path | None, installation: ClientInstallation) -> str:
    """The cluster's metrics page, from the URL or, if that is None, from the address in the settings. Raises CommandError."""
    return _fetch(url or installation.metrics_url(config))


def _show(seen: "ClusterStatus", *, as_json: bool) -> None:
    if as_json:
        print_json(seen)
        return
    from neox_serve.cli.views.status import status_view

    print_view(status_view(seen))


def _watch(
    client: "Client", interval_s: float, view: "Callable[[ClusterStatus], RenderableType]", *, as_json: bool = False, screen: bool = False
) -> None:
    """Looks again and again; a gateway that is away for a while is said to be, and looked for again."""
    from rich.console import Console
    from rich.live import Live

    from neox_serve.cli.views.status import missing_view
    from neox_serve.client import ServeError

    console, asking = Console(), ThreadPoolExecutor(1)
    with _noticed_interrupt() as interrupted, Live(console=console, auto_refresh=False, screen=screen and console.is_terminal) as live:
        while not interrupted.is_set():
            answer = asking.submit(client.status, timeout_s=_CALL_TIMEOUT_S)
            while not (answer.done() or interrupted.wait(_LOOK_S)):
                pass
            if interrupted.is_set():
                break
            try:
                seen = answer.result()
            except ServeError as error:
                live.update(missing_view(error), refresh=True)
            else:
                print_json(seen) if as_json else live.update(view(seen), refresh=True)
            interrupted.wait(interval_s)
    client.close()  # ends the call that is under way
    asking.shutdown()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _noticed_interrupt() -> Iterator[threading.Event]:
    """Notes Ctrl-C instead of raising it: raised inside gRPC it may leave a lock behind that closing the channel waits for."""
    noticed = threading.Event()
    former = signal.signal(signal.SIGINT, lambda *_: noticed.set())
    try:
        yield noticed
    finally:
        signal.signal(signal.SIGINT, former)


def _fetch(url: str) -> str:
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter("must begin with http:// or https://", param_hint="--url")
    try:
        with urllib.request.urlopen(url, timeout=_CALL_TIMEOUT_S) as page:  # noqa: S310 - the scheme is checked above
            return str(page.read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        with error:
            raise CommandError(f"no metrics at {url}: {error}") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise CommandError(f"no metrics at {url}: {error}") from error
