"""`neox-serve`: the command. Each command lives in `cluster.commands`; here they get their names."""

import typer

from cluster.commands import (
    bench,
    classify,
    configuration,
    generate,
    inspect,
    job,
    lifecycle,
    logs,
    plan,
    search,
    simulate,
    tenant,
    tokens,
    usage,
)
from cluster.commands.shared.failures import ExplainingGroup

app = typer.Typer(
    cls=ExplainingGroup,
    help="Serve GPT-NeoX models, and call what is served.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_CALLS, _CLUSTER, _PLATFORM, _SIZING, _SETTINGS = "Call what is served", "Run a cluster", "Keep the platform", "Size a cluster", "Settings"

for _command in (lifecycle.up, lifecycle.down, lifecycle.apply, inspect.status, inspect.top, inspect.drain, inspect.metrics, logs.logs):
    app.command(rich_help_panel=_CLUSTER)(_command)
for _command in (generate.generate, tokens.embed, tokens.score, tokens.tokenize, tokens.detokenize, tokens.estimate):
    app.command(rich_help_panel=_CALLS)(_command)
for _command in (classify.classify, search.search, inspect.models, bench.bench):
    app.command(rich_help_panel=_CALLS)(_command)
app.add_typer(job.job_app, name="job", rich_help_panel=_CALLS)
app.add_typer(tenant.tenant_app, name="tenant", rich_help_panel=_PLATFORM)
app.add_typer(usage.usage_app, name="usage", rich_help_panel=_PLATFORM)
for _command in (plan.plan, simulate.simulate):
    app.command(rich_help_panel=_SIZING)(_command)
app.add_typer(configuration.config_app, name="config", rich_help_panel=_SETTINGS)
app.add_typer(configuration.manifests_app, name="manifests", rich_help_panel=_SETTINGS)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
