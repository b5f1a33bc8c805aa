"""The `neox-serve` command of a client installation, and the commands that the server's installation has in common with it."""

from collections.abc import Callable

import typer

from neox_serve.cli.commands import classify, cluster_status, generate, job, tenant, tokens, usage
from neox_serve.cli.errors import CommandError, ExplainingGroup
from neox_serve.cli.installation import SERVER_HINT, ClientInstallation

CALLS, CLUSTER, PLATFORM, SIZING, SETTINGS = "Call models", "Run a cluster", "Manage tenants and usage", "Size a cluster", "Settings"
"""Headings of the help page, which every command is listed under."""

SERVER_COMMANDS = ("up", "down", "apply", "logs", "search", "bench", "plan", "simulate", "config", "manifests")
"""Commands that only the server's installation has."""

_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    CLUSTER: (cluster_status.status, cluster_status.top, cluster_status.drain, cluster_status.metrics),
    CALLS: (
        generate.generate,
        tokens.embed,
        tokens.score,
        tokens.tokenize,
        tokens.detokenize,
        tokens.estimate,
        classify.classify,
        cluster_status.models,
    ),
}


def base_app(installation: ClientInstallation) -> typer.Typer:
    """An app with the commands that need only a gateway. `installation` says what else they can do here."""
    app = typer.Typer(
        cls=ExplainingGroup,
        help="Serve GPT-NeoX models, and call models that are served.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"obj": installation},
    )
    for panel, commands in _COMMANDS.items():
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    app.add_typer(job.job_app, name="job", rich_help_panel=CALLS)
    app.add_typer(tenant.tenant_app, name="tenant", rich_help_panel=PLATFORM)
    app.add_typer(usage.usage_app, name="usage", rich_help_panel=PLATFORM)
    return app


def client_app() -> typer.Typer:
    """The app of a client installation: a command of the server says what to install."""
    app = base_app(ClientInstallation())
    for name in SERVER_COMMANDS:
        _add_server_command(app, name)
    return app


def main() -> None:
    """The console script of the client's distribution."""
    client_app()()


def _add_server_command(app: typer.Typer, name: str) -> None:
    accept_anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name=name, help="Needs the server: `pip install neox-serve`.", context_settings=accept_anything, rich_help_panel="Server")
    def refuse(context: typer.Context) -> None:
        raise CommandError(f"`neox-serve {context.info_name}` is a command of the server; {SERVER_HINT}")


if __name__ == "__main__":
    main()
