"""`neox-serve usage`: usage records, and checks of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from neox_serve.cli.admin_calls import DirectOption, admin_caller, print_messages
from neox_serve.cli.connection import Connection, connected
from neox_serve.cli.console import JsonOption, print_view
from neox_serve.cli.errors import CommandError
from neox_serve.cli.installation import AdminCall

if TYPE_CHECKING:
    from neox_serve.cli.usage_reconciliation import EngineCounters
    from neox_serve.v1 import admin_service_pb2

usage_app = typer.Typer(help="Show and verify usage records.", no_args_is_help=True)


@usage_app.command()
@connected
def show(
    connection: Connection,
    *,
    days: Annotated[int, typer.Option(min=1, help="Number of days to show (UTC), including today.")] = 1,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the usage of each tenant."""
    show_usage(admin_caller(connection, direct=direct), None, days, as_json=as_json)


@usage_app.command()
@connected
def verify(
    connection: Connection,
    *,
    metrics_url: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="URL", help="Metrics page with the engines' counters. Default: the metrics host and port in the settings."
        ),
    ] = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Verify that no usage record was changed or removed, and compare the records with the engines' own counts."""
    from neox_serve.v1 import admin_service_pb2 as pb

    found = admin_caller(connection, direct=direct)(pb.VerifyUsageRequest())
    if as_json:
        print_messages([found])
    else:
        print(f"{found.records:,} records: {found.prompt_tokens:,} prompt and {found.completion_tokens:,} completion tokens")
    if found.breaks:
        broken = "\n".join(f"  {one.chain}, record {one.sequence}: {one.what}" for one in found.breaks)
        raise CommandError(f"{len(found.breaks)} chains of usage records are broken:\n{broken}")
    if not as_json:
        print("All chains of usage records are intact.")
        _show_reconciliation(found, _engine_counters(metrics_url, connection))


def show_usage(call: AdminCall, name: str | None, days: int, *, as_json: bool) -> None:
    """Prints the usage of a tenant, or of all if `name` is None, over this many days (UTC) including today."""
    from datetime import datetime, timedelta, timezone

    from neox_serve.v1 import admin_service_pb2 as pb

    request = pb.GetUsageRequest(tenant=name or "")
    today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    request.start_time.FromDatetime(today - timedelta(days=days - 1))
    sums = call(request).sums
    if as_json:
        print_messages(sums)
        return
    from neox_serve.cli.views.tenant import usage_table

    print_view(usage_table(sums))


def _engine_counters(url: str | None, connection: Connection) -> "dict[str, EngineCounters]":
    from neox_serve.cli.commands.cluster_status import fetch_metrics
    from neox_serve.cli.usage_reconciliation import engine_counters

    return engine_counters(fetch_metrics(url, connection.config, connection.installation))


def _show_reconciliation(found: "admin_service_pb2.VerifyUsageResponse", counted: "dict[str, EngineCounters]") -> None:
    from neox_serve.cli.usage_reconciliation import overcharged, reconciled
    from neox_serve.cli.views.tenant import reconciliation_table

    compared = reconciled(found.replicas, counted)
    if compared:
        print_view(reconciliation_table(compared))
    if wrong := overcharged(compared):
        raise CommandError(f"usage records of these replicas have more tokens than their engines counted: {', '.join(wrong)}")
