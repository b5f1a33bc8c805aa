"""`neox-serve tenant`: who may use the cluster, and how much of it."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neox_serve.cli.admin_calls import DirectOption, admin_caller, print_messages
from neox_serve.cli.commands.usage import show_usage
from neox_serve.cli.connection import Connection, connected
from neox_serve.cli.console import JsonOption, print_view

if TYPE_CHECKING:
    from neox_serve.v1 import admin_service_pb2

tenant_app = typer.Typer(help="Keep the tenants: who may use the cluster, and how much of it.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="TENANT")]
RoleOption = Annotated[Literal["tenant", "operator", "admin"] | None, typer.Option(help="What its credentials are for.")]
ClassOption = Annotated[
    Literal["system", "interactive", "default", "bulk"] | None, typer.Option(help="The highest class that its requests get.")
]
WeightOption = Annotated[float | None, typer.Option(help="Its share of a full cluster, against the others' (1 by default).")]
NamesOption = list[str] | None
Limit = Annotated[str | None, typer.Option(metavar="N|none")]
LifetimeOption = Annotated[float | None, typer.Option("--lifetime", metavar="DAYS", min=0, help="Absent: it does not expire.")]


@tenant_app.command()
@connected
def add(  # noqa: PLR0913 - a tenant's fields, one by one
    connection: Connection,
    *,
    name: NameArgument,
    role: RoleOption = None,
    weight: WeightOption = None,
    class_ceiling: ClassOption = None,
    model: Annotated[NamesOption, typer.Option(help="A model it may use; repeatable. Absent: all.")] = None,
    adapter: Annotated[NamesOption, typer.Option(help='An adapter it may use; repeatable; "" for none. Absent: all.')] = None,
    certificate: Annotated[NamesOption, typer.Option(help="A name in a client certificate that stands for it; repeatable.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    tokens_per_day: Limit = None,
    concurrent_requests: Limit = None,
    key: Annotated[bool, typer.Option("--key/--no-key", help="Make it an API key, and print that.")] = True,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Enter a tenant, and make it an API key."""
    from neox_serve.v1 import admin_service_pb2 as pb

    ask, tenant = admin_caller(connection, direct=direct), pb.Tenant(name=name)
    _fill(
        tenant,
        {"role": role, "weight": weight, "class_ceiling": class_ceiling},
        {"models": model, "adapters": adapter, "certificate_names": certificate},
        {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "tokens_per_day": tokens_per_day,
            "concurrent_requests": concurrent_requests,
        },
    )
    made = ask(pb.CreateTenantRequest(tenant=tenant)).tenant
    secret = ask(pb.CreateKeyRequest(tenant=name)).secret if key else None
    _show_tenants([made], as_json=as_json, secret=secret)


@tenant_app.command(name="set")
@connected
def set_(  # noqa: PLR0913 - as above
    connection: Connection,
    *,
    name: NameArgument,
    role: RoleOption = None,
    weight: WeightOption = None,
    class_ceiling: ClassOption = None,
    model: Annotated[NamesOption, typer.Option(help='A model it may use; repeatable; "*" for all.')] = None,
    adapter: Annotated[NamesOption, typer.Option(help='An adapter it may use; repeatable; "*" for all, "" for none.')] = None,
    certificate: Annotated[NamesOption, typer.Option(help='Names of its certificates; repeatable; "" for none.')] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    tokens_per_day: Limit = None,
    concurrent_requests: Limit = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether its credentials open anything.")] = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change what is given of a tenant; it holds on all gateways within a second."""
    from neox_serve.v1 import admin_service_pb2 as pb

    ask = admin_caller(connection, direct=direct)
    tenant = ask(pb.GetTenantRequest(name=name)).tenant
    _fill(
        tenant,
        {"role": role, "weight": weight, "class_ceiling": class_ceiling},
        {"models": model, "adapters": adapter, "certificate_names": certificate},
        {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "tokens_per_day": tokens_per_day,
            "concurrent_requests": concurrent_requests,
        },
    )
    if enabled is not None:
        tenant.disabled = not enabled
    _show_tenants([ask(pb.UpdateTenantRequest(tenant=tenant)).tenant], as_json=as_json)


@tenant_app.command(name="list")
@connected
def list_(connection: Connection, *, direct: DirectOption = False, as_json: JsonOption = False) -> None:
    """Show all tenants."""
    from neox_serve.v1 import admin_service_pb2 as pb

    ask, tenants, token = admin_caller(connection, direct=direct), [], ""
    while True:
        page = ask(pb.ListTenantsRequest(page_size=1_000, page_token=token))
        tenants += page.tenants
        if not (token := page.next_page_token):
            break
    _show_tenants(tenants, as_json=as_json)


@tenant_app.command()
@connected
def keys(connection: Connection, *, name: NameArgument, direct: DirectOption = False, as_json: JsonOption = False) -> None:
    """Show a tenant's API keys, without their secrets."""
    from neox_serve.v1 import admin_service_pb2 as pb

    found = admin_caller(connection, direct=direct)(pb.ListKeysRequest(tenant=name)).keys
    if as_json:
        print_messages(found)
        return
    from neox_serve.cli.views.tenant import keys_table

    print_view(keys_table(found))


@tenant_app.command()
@connected
def add_key(
    connection: Connection,
    *,
    name: NameArgument,
    label: Annotated[str, typer.Option(help="For people.")] = "",
    lifetime_days: LifetimeOption = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a further API key, and print it."""
    from neox_serve.v1 import admin_service_pb2 as pb

    request = pb.CreateKeyRequest(tenant=name, label=label)
    _set_days(request, "lifetime", lifetime_days)
    _show_secret(admin_caller(connection, direct=direct)(request), as_json=as_json)


@tenant_app.command()
@connected
def rotate_key(
    connection: Connection,
    *,
    name: NameArgument,
    overlap_s: Annotated[float, typer.Option("--overlap", metavar="SECONDS", min=0, help="How long the other keys still work.")] = 3600.0,
    lifetime_days: LifetimeOption = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new API key and print it; the tenant's others end after the overlap."""
    from neox_serve.v1 import admin_service_pb2 as pb

    request = pb.RotateKeyRequest(tenant=name)
    request.overlap.FromNanoseconds(round(overlap_s * 1e9))
    _set_days(request, "lifetime", lifetime_days)
    _show_secret(admin_caller(connection, direct=direct)(request), as_json=as_json)


@tenant_app.command()
@connected
def revoke_key(connection: Connection, *, key_id: Annotated[str, typer.Argument(metavar="KEY_ID")], direct: DirectOption = False) -> None:
    """End an API key now, and within a second the calls that it began."""
    from neox_serve.v1 import admin_service_pb2 as pb

    admin_caller(connection, direct=direct)(pb.RevokeKeyRequest(key_id=key_id))
    print(f"Revoked {key_id}.")


@tenant_app.command()
@connected
def audit(
    connection: Connection,
    *,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="Entries, newest first.")] = 50,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what."""
    from neox_serve.v1 import admin_service_pb2 as pb

    entries = admin_caller(connection, direct=direct)(pb.ListAuditEntriesRequest(page_size=most)).entries
    if as_json:
        print_messages(entries)
        return
    from neox_serve.cli.views.tenant import audit_table

    print_view(audit_table(entries))


@tenant_app.command()
@connected
def usage(
    connection: Connection,
    *,
    name: Annotated[str | None, typer.Argument(metavar="[TENANT]")] = None,
    days: Annotated[int, typer.Option(min=1, help="Whole days (UTC), with today.")] = 1,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a tenant, or each of them, used."""
    show_usage(admin_caller(connection, direct=direct), name, days, as_json=as_json)


def _fill(tenant: "admin_service_pb2.Tenant", words: dict[str, Any], names: dict[str, NamesOption], limits: dict[str, str | None]) -> None:
    """Sets what was given."""
    from neox_serve.v1 import admin_service_pb2, generation_pb2

    if words["role"]:
        tenant.role = admin_service_pb2.Role.Value(f"ROLE_{words['role'].upper()}")
    if words["class_ceiling"]:
        tenant.class_ceiling = generation_pb2.PriorityClass.Value(f"PRIORITY_CLASS_{words['class_ceiling'].upper()}")
    if words["weight"] is not None:
        tenant.weight = words["weight"]
    for field in ("models", "adapters"):
        _fill_names(tenant, field, names[field])
    if names["certificate_names"] is not None:
        tenant.certificate_names[:] = [name for name in names["certificate_names"] if name]
    for field, limit in limits.items():
        _fill_limit(tenant.quotas, field, limit)


def _fill_names(tenant: Any, field: str, names: NamesOption) -> None:
    if names is None:
        return
    tenant.ClearField(field)
    if names != ["*"]:
        getattr(tenant, field).SetInParent()
        getattr(tenant, field).names.extend(name for name in names if name)


def _fill_limit(quotas: Any, field: str, limit: str | None) -> None:
    if limit is None:
        return
    quotas.ClearField(field)
    if limit != "none":
        if not limit.isdecimal():
            raise typer.BadParameter(f"expected a whole number or none, got {limit!r}", param_hint=f"--{field.replace('_', '-')}")
        try:
            setattr(quotas, field, int(limit))
        except ValueError as error:
            raise typer.BadParameter(f"{limit} is too large", param_hint=f"--{field.replace('_', '-')}") from error


def _set_days(request: Any, field: str, days: float | None) -> None:
    if days is not None:
        getattr(request, field).FromNanoseconds(round(days * 86_400) * 1_000_000_000)


def _show_tenants(tenants: "list[admin_service_pb2.Tenant]", *, as_json: bool, secret: str | None = None) -> None:
    if as_json:
        from google.protobuf.json_format import MessageToDict

        for tenant in tenants:
            print(json.dumps(MessageToDict(tenant) | ({"apiKey": secret} if secret else {})))
        return
    from neox_serve.cli.views.tenant import tenants_table

    print_view(tenants_table(tenants))
    if secret:
        print(f"API key, told this once:\n{secret}")


def _show_secret(answer: Any, *, as_json: bool) -> None:
    if as_json:
        print_messages([answer])
    else:
        print(f"API key {answer.key.key_id} of {answer.key.tenant}, told this once:\n{answer.secret}")
