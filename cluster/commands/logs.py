"""`neox-serve logs`: what the processes of the cluster on this machine write."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.settings import effective
from neox_serve.cli.connection import ConfigOption
from neox_serve.cli.errors import CommandError

GrepOption = Annotated[str, typer.Option("--grep", metavar="TEXT", help="Only lines with this text, such as a request id or a component.")]


def logs(
    config: ConfigOption = None,
    grep: GrepOption = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
) -> None:
    """Show the log lines of gateways, router and engines."""
    from cluster.local import log_tail, state

    cluster = state.running(effective(config).state_folder)
    if cluster is None:
        raise CommandError("no cluster runs here; start one with `neox-serve up`")
    tail = log_tail.LogTail(Path(cluster.log_folder))
    log_tail.follow(tail, lambda line: grep in line, typer.echo, forever=follow)
