"""Tables of tenants, API keys, usage and the audit log."""

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from neox_serve.cli.usage_reconciliation import Reconciled
from neox_serve.v1 import admin_service_pb2 as pb
from neox_serve.v1 import generation_pb2

_LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent_requests")
_LIMIT_HEADERS = ("requests/min", "tokens/min", "tokens/day", "concurrent")


def tenants_table(tenants: Iterable[pb.Tenant]) -> Table:
    """One row per tenant."""
    table = _table(
        "tenant", "role", "weight", "class", "models", "adapters", "requests/min", "tokens/min", "tokens/day", "concurrent", "state"
    )
    for tenant in tenants:
        table.add_row(
            tenant.name,
            _word(pb.Role.Name(tenant.role), "ROLE_"),
            f"{tenant.weight:g}",
            _word(generation_pb2.PriorityClass.Name(tenant.class_ceiling), "PRIORITY_CLASS_"),
            *(_names(tenant, field) for field in ("models", "adapters")),
            *(_limit(tenant.quotas, field) for field in _LIMITS),
            "disabled" if tenant.disabled else "enabled",
        )
    return table


def keys_table(keys: Iterable[pb.Key]) -> Table:
    """One row per API key."""
    table = _table("key id", "label", "created", "expires", "revoked")
    for key in keys:
        ends = [_moment(getattr(key, field)) if key.HasField(field) else "-" for field in ("expire_time", "revoke_time")]
        table.add_row(key.key_id, key.label, _moment(key.create_time), *ends)
    return table


def usage_table(sums: Iterable[pb.UsageSum]) -> Table:
    """One row per tenant and model."""
    table = _table("tenant", "model", "requests", "failed", "prompt tokens", "cached", "completion tokens")
    for one in sums:
        counts = (one.requests, one.failed_requests, one.prompt_tokens, one.cached_tokens, one.completion_tokens)
        table.add_row(one.tenant, one.model, *(f"{count:,}" for count in counts))
    return table


def audit_table(entries: Iterable[pb.AuditEntry]) -> Table:
    """One row per entry of the audit log."""
    table = _table("time", "actor", "action", "subject", "details")
    for entry in entries:
        table.add_row(_moment(entry.time), entry.actor, entry.action, entry.subject, entry.details_json)
    return table


def reconciliation_table(compared: Iterable[Reconciled]) -> Table:
    """One row per replica: tokens in its usage records and in its engine's own counters."""
    table = _table("replica", "prompt tokens", "engine's count", "completion tokens", "engine's count")
    for one in compared:
        recorded, counted = one.recorded, one.counted
        counts = (recorded.prompt_tokens, counted.prompt_tokens, recorded.generation_tokens, counted.generation_tokens)
        table.add_row(one.replica_id, *(f"{count:,}" for count in counts))
    return table


def _table(*headers: str) -> Table:
    table = Table()
    for header in headers:
        table.add_column(header)
    return table


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _names(tenant: Any, field: str) -> str:
    return (", ".join(getattr(tenant, field).names) or "none") if tenant.HasField(field) else "all"


def _limit(quotas: Any, field: str) -> str:
    return f"{getattr(quotas, field):,}" if quotas.HasField(field) else "-"


def _moment(moment: Timestamp) -> str:
    return datetime.fromtimestamp(moment.seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
