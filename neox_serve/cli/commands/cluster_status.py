"""`neox-serve models`, `status`, `drain`, `top` and `metrics`: the state of a cluster."""

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
_POLL_INTERVAL_S = 0.05
"""How often a call in progress is checked for Ctrl-C."""


@connected
def models(connection: Connection, *, as_json: JsonOption = False) -> None:
    """Show the models that are served, with their limits and capabilities."""
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
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Time between two refreshes with --watch.")
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show pools, replicas with their load, gateways, and conditions that need attention."""
    with connection.client() as client:
        if watch:
            from neox_serve.cli.views.status import status_view

            _watch(client, interval_s, status_view, as_json=as_json)
        else:
            _show(client.status(timeout_s=_CALL_TIMEOUT_S), as_json=as_json)


@connected
def drain(
    connection: Connection,
    *,
    replica_id: Annotated[str, typer.Argument(metavar="REPLICA_ID", help="A replica's id, as `neox-serve status` shows it.")],
) -> None:
    """Let a replica finish its requests, then replace it with a new one."""
    with connection.client() as client:
        client.drain_replica(replica_id, timeout_s=_CALL_TIMEOUT_S)
    print(f"{replica_id} is draining; `neox-serve status` shows it until it has stopped.")


@connected
def top(
    connection: Connection,
    *,
    interval_s: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Time between two refreshes.")] = 1.0,
) -> None:
    """Show the load of tenants, pools and replicas, refreshed until Ctrl-C."""
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


def _show(cluster_status: "ClusterStatus", *, as_json: bool) -> None:
    if as_json:
        print_json(cluster_status)
        return
    from neox_serve.cli.views.status import status_view

    print_view(status_view(cluster_status))


def _watch(
    client: "Client", interval_s: float, view: "Callable[[ClusterStatus], RenderableType]", *, as_json: bool = False, screen: bool = False
) -> None:
    """Calls status repeatedly and shows each result. A failed call is shown too, and the next one is tried."""
    from rich.console import Console
    from rich.live import Live

    from neox_serve.cli.views.status import missing_view
    from neox_serve.client import ServeError

    console, executor = Console(), ThreadPoolExecutor(1)
    with _recorded_interrupt() as interrupted, Live(console=console, auto_refresh=False, screen=screen and console.is_terminal) as live:
        while not interrupted.is_set():
            call = executor.submit(client.status, timeout_s=_CALL_TIMEOUT_S)
            while not (call.done() or interrupted.wait(_POLL_INTERVAL_S)):
                pass
            if interrupted.is_set():
                break
            try:
                current = call.result()
            except ServeError as error:
                live.update(missing_view(error), refresh=True)
            else:
                print_json(current) if as_json else live.update(view(current), refresh=True)
            interrupted.wait(interval_s)
    client.close()  # cancels the call in progress
    executor.shutdown()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _recorded_interrupt() -> Iterator[threading.Event]:
    """Records Ctrl-C in an event. KeyboardInterrupt inside gRPC could leave a lock held that closing the channel waits for."""
    interrupted = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def _fetch(url: str) -> str:
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter("must start with http:// or https://", param_hint="--url")
    try:
        with urllib.request.urlopen(url, timeout=_CALL_TIMEOUT_S) as page:  # noqa: S310 - the scheme is checked above
            return str(page.read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        with error:
            raise CommandError(f"cannot read the metrics at {url}: {error}") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise CommandError(f"cannot read the metrics at {url}: {error}") from error
