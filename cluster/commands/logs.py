"""`neox-serve logs`: the logs of the cluster on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.settings import effective
from neox_serve.cli.connection import ConfigOption
from neox_serve.cli.errors import CommandError

GrepOption = Annotated[
    str, typer.Option("--grep", metavar="TEXT", help="Show only lines that contain this text, such as a request id. Default: all lines.")
]


def logs(
    config: ConfigOption = None,
    grep: GrepOption = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines until Ctrl-C.")] = False,
) -> None:
    """Print the log lines of gateways, router and engines."""
    from cluster.local import log_tail, state

    cluster = state.running(effective(config).state_folder)
    if cluster is None:
        raise CommandError("no cluster runs here; start one with `neox-serve up`")
    tail = log_tail.LogTail(Path(cluster.log_folder))
    log_tail.follow(tail, lambda line: grep in line, typer.echo, forever=follow)
