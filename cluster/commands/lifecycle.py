"""`neox-serve up`, `down` and `apply`: run a cluster on this machine."""

from collections.abc import Callable
from typing import Annotated

import typer

from cluster.commands.settings import SetOption, effective
from neox_serve.cli.connection import ConfigOption
from neox_serve.cli.errors import CommandError


def up(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Start a cluster on this machine and serve until Ctrl-C or `neox-serve down`."""
    settings = effective(config, overrides)
    from cluster.local.cluster import serve_until_stopped

    _explain_failure(lambda: serve_until_stopped(settings))


def apply(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Apply changed settings to the cluster that `up` runs, with a rolling update."""
    settings = effective(config, overrides)
    from cluster.local.cluster import apply_to_running

    _explain_failure(lambda: apply_to_running(settings))


def down(
    config: ConfigOption = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Maximum time for accepted requests to finish.")
    ] = 300.0,
) -> None:
    """Drain and stop the cluster that `up` runs."""
    settings = effective(config)
    from cluster.local.cluster import stop_running

    print("Stopped." if stop_running(settings, timeout_s) else "No cluster runs here.")


def _explain_failure(action: Callable[[], None]) -> None:
    from cluster.local.deployment import DeploymentError

    try:
        action()
    except DeploymentError as error:
        raise CommandError(f"a part of the cluster did not start:\n{error}") from error
