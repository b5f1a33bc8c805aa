"""`neox-serve`: the complete command. It adds the commands that need the server (`cluster.commands`) to those of `neox_serve.cli`."""

from collections.abc import Callable

from cluster.commands import bench, configuration, lifecycle, logs, plan, search, simulate
from cluster.installation import ServerInstallation
from neox_serve.cli.app import CALLS, CLUSTER, SETTINGS, SIZING, base_app

_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    CLUSTER: (lifecycle.up, lifecycle.down, lifecycle.apply, logs.logs),
    CALLS: (search.search, bench.bench),
    SIZING: (plan.plan, simulate.simulate),
}

app = base_app(ServerInstallation())
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(configuration.config_app, name="config", rich_help_panel=SETTINGS)
app.add_typer(configuration.manifests_app, name="manifests", rich_help_panel=SETTINGS)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
