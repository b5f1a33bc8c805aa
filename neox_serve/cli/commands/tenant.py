"""`neox-serve tenant`: tenants, their API keys and their quotas."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neox_serve.cli.admin_calls import DirectOption, admin_caller, print_messages
from neox_serve.cli.commands.usage import show_usage
from neox_serve.cli.connection import Connection, connected
from neox_serve.cli.console import JsonOption, print_view

if TYPE_CHECKING:
    from neox_serve.v1 import admin_service_pb2

tenant_app = typer.Typer(help="Manage tenants, their API keys and their quotas.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]
RoleOption = Annotated[
    Literal["tenant", "operator", "admin"] | None,
    typer.Option(help="tenant: may call models; operator: may also see and drain the cluster; admin: may also manage tenants."),
]
ClassOption = Annotated[
    Literal["system", "interactive", "default", "bulk"] | None, typer.Option(help="Highest priority class of its requests.")
]
WeightOption = Annotated[float | None, typer.Option(help="Share of a busy cluster relative to other tenants. Default for a new tenant: 1.")]
NamesOption = list[str] | None
RequestsOption = Annotated[str | None, typer.Option(metavar="N|none", help="Quota of requests per minute; none: no limit.")]
TokensOption = Annotated[str | None, typer.Option(metavar="N|none", help="Quota of tokens per minute; none: no limit.")]
DailyTokensOption = Annotated[str | None, typer.Option(metavar="N|none", help="Quota of tokens per day (UTC); none: no limit.")]
ConcurrencyOption = Annotated[str | None, typer.Option(metavar="N|none", help="Quota of concurrent requests; none: no limit.")]
LifetimeOption = Annotated[
    float | None, typer.Option("--lifetime", metavar="DAYS", min=0, help="Days until the key expires. Default: it does not expire.")
]


@tenant_app.command()
@connected
def add(  # noqa: PLR0913 - a tenant's fields, one by one
    connection: Connection,
    *,
    name: NameArgument,
    role: RoleOption = None,
    weight: WeightOption = None,
    class_ceiling: ClassOption = None,
    model: Annotated[NamesOption, typer.Option(help="A model that the tenant may use; repeatable. Default: all models.")] = None,
    adapter: Annotated[
        NamesOption,
        typer.Option(help='An adapter that the tenant may use; repeatable; "" for none. Default: all adapters.'),
    ] = None,
    certificate: Annotated[NamesOption, typer.Option(help="A name in a client certificate that identifies the tenant; repeatable.")] = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    tokens_per_day: DailyTokensOption = None,
    concurrent_requests: ConcurrencyOption = None,
    key: Annotated[bool, typer.Option("--key/--no-key", help="Create an API key for the tenant and print it.")] = True,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create a tenant and an API key for it."""
    from neox_serve.v1 import admin_service_pb2 as pb

    call, tenant = admin_caller(connection, direct=direct), pb.Tenant(name=name)
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
    created = call(pb.CreateTenantRequest(tenant=tenant)).tenant
    secret = call(pb.CreateKeyRequest(tenant=name)).secret if key else None
    _show_tenants([created], as_json=as_json, secret=secret)


@tenant_app.command(name="set")
@connected
def set_(  # noqa: PLR0913 - as above
    connection: Connection,
    *,
    name: NameArgument,
    role: RoleOption = None,
    weight: WeightOption = None,
    class_ceiling: ClassOption = None,
    model: Annotated[NamesOption, typer.Option(help='A model that the tenant may use; repeatable; "*" for all.')] = None,
    adapter: Annotated[NamesOption, typer.Option(help='An adapter that the tenant may use; repeatable; "*" for all, "" for none.')] = None,
    certificate: Annotated[
        NamesOption,
        typer.Option(help='A name in a client certificate that identifies the tenant; repeatable; "" for none.'),
    ] = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    tokens_per_day: DailyTokensOption = None,
    concurrent_requests: ConcurrencyOption = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Accept or refuse the tenant's credentials.")] = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change a tenant. Options that are not given stay as they are. All gateways follow within a second."""
    from neox_serve.v1 import admin_service_pb2 as pb

    call = admin_caller(connection, direct=direct)
    tenant = call(pb.GetTenantRequest(name=name)).tenant
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
    _show_tenants([call(pb.UpdateTenantRequest(tenant=tenant)).tenant], as_json=as_json)


@tenant_app.command(name="list")
@connected
def list_(connection: Connection, *, direct: DirectOption = False, as_json: JsonOption = False) -> None:
    """List all tenants."""
    from neox_serve.v1 import admin_service_pb2 as pb

    call, tenants, token = admin_caller(connection, direct=direct), [], ""
    while True:
        page = call(pb.ListTenantsRequest(page_size=1_000, page_token=token))
        tenants += page.tenants
        if not (token := page.next_page_token):
            break
    _show_tenants(tenants, as_json=as_json)


@tenant_app.command()
@connected
def keys(connection: Connection, *, name: NameArgument, direct: DirectOption = False, as_json: JsonOption = False) -> None:
    """List a tenant's API keys without their secrets."""
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
    label: Annotated[str, typer.Option(metavar="TEXT", help="Note that `neox-serve tenant keys` shows.")] = "",
    lifetime_days: LifetimeOption = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create another API key for a tenant and print it."""
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
    overlap_s: Annotated[
        float,
        typer.Option("--overlap", metavar="SECONDS", min=0, help="How long the tenant's other keys stay valid."),
    ] = 3600.0,
    lifetime_days: LifetimeOption = None,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create a new API key and print it. The tenant's other keys expire after the overlap."""
    from neox_serve.v1 import admin_service_pb2 as pb

    request = pb.RotateKeyRequest(tenant=name)
    request.overlap.FromNanoseconds(round(overlap_s * 1e9))
    _set_days(request, "lifetime", lifetime_days)
    _show_secret(admin_caller(connection, direct=direct)(request), as_json=as_json)


@tenant_app.command()
@connected
def revoke_key(
    connection: Connection,
    *,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, as `neox-serve tenant keys` shows it.")],
    direct: DirectOption = False,
) -> None:
    """Revoke an API key now. Calls that use it are cancelled within a second."""
    from neox_serve.v1 import admin_service_pb2 as pb

    admin_caller(connection, direct=direct)(pb.RevokeKeyRequest(key_id=key_id))
    print(f"Revoked {key_id}.")


@tenant_app.command()
@connected
def audit(
    connection: Connection,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of entries to show, newest first.")] = 50,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the audit log: who changed what, and when."""
    from neox_serve.v1 import admin_service_pb2 as pb

    entries = admin_caller(connection, direct=direct)(pb.ListAuditEntriesRequest(page_size=limit)).entries
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
    name: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Name of a tenant. Default: all tenants.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Number of days to show (UTC), including today.")] = 1,
    direct: DirectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the usage of a tenant, or of all tenants."""
    show_usage(admin_caller(connection, direct=direct), name, days, as_json=as_json)


def _fill(tenant: "admin_service_pb2.Tenant", words: dict[str, Any], names: dict[str, NamesOption], limits: dict[str, str | None]) -> None:
    """Sets the fields of a tenant whose options were given."""
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
            raise typer.BadParameter(f"{limit!r} is invalid; it must be a whole number or none", param_hint=f"--{field.replace('_', '-')}")
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
        print(f"API key (it is not shown again):\n{secret}")


def _show_secret(response: Any, *, as_json: bool) -> None:
    if as_json:
        print_messages([response])
    else:
        print(f"API key {response.key.key_id} of {response.key.tenant} (it is not shown again):\n{response.secret}")
