"""Messages of AdminService <-> core types. Incoming messages are validated here, because the ranges are those of the core types."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from neox_serve.core.errors import FieldViolation, Reason, ServeError, invalid
from neox_serve.core.tenancy.api_keys import ApiKey
from neox_serve.core.tenancy.tenants import NAME, PriorityClass, Quotas, Role, Tenant
from neox_serve.v1 import admin_service_pb2, generation_pb2

MAX_WEIGHT = 1_000.0
MAX_LIMIT = 2**62
MAX_LIFETIME_S = 10 * 366 * 86_400.0

_ROLES: Mapping[int, Role] = {
    admin_service_pb2.ROLE_UNSPECIFIED: Role.TENANT,
    admin_service_pb2.ROLE_TENANT: Role.TENANT,
    admin_service_pb2.ROLE_OPERATOR: Role.OPERATOR,
    admin_service_pb2.ROLE_ADMIN: Role.ADMIN,
}
_ROLE_NUMBERS: Mapping[Role, admin_service_pb2.Role.ValueType] = {
    Role.TENANT: admin_service_pb2.ROLE_TENANT,
    Role.OPERATOR: admin_service_pb2.ROLE_OPERATOR,
    Role.ADMIN: admin_service_pb2.ROLE_ADMIN,
}
PRIORITIES: Mapping[int, PriorityClass] = {
    generation_pb2.PRIORITY_CLASS_UNSPECIFIED: PriorityClass.DEFAULT,
    generation_pb2.PRIORITY_CLASS_SYSTEM: PriorityClass.SYSTEM,
    generation_pb2.PRIORITY_CLASS_INTERACTIVE: PriorityClass.INTERACTIVE,
    generation_pb2.PRIORITY_CLASS_DEFAULT: PriorityClass.DEFAULT,
    generation_pb2.PRIORITY_CLASS_BULK: PriorityClass.BULK,
}
"""Priority classes, from protobuf to core."""
PRIORITY_NUMBERS: Mapping[PriorityClass, generation_pb2.PriorityClass.ValueType] = {
    PriorityClass.SYSTEM: generation_pb2.PRIORITY_CLASS_SYSTEM,
    PriorityClass.INTERACTIVE: generation_pb2.PRIORITY_CLASS_INTERACTIVE,
    PriorityClass.DEFAULT: generation_pb2.PRIORITY_CLASS_DEFAULT,
    PriorityClass.BULK: generation_pb2.PRIORITY_CLASS_BULK,
}
"""Priority classes, from core to protobuf."""

_QUOTAS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent_requests")
_MAX_NAME_CHARACTERS = 255


def tenant_from_proto(message: admin_service_pb2.Tenant) -> Tenant:
    """Returns the tenant. Raises INVALID_ARGUMENT with a violation for each invalid field."""
    violations = list(_violations(message))
    if violations:
        texts = "; ".join(f"{one.field}: {one.description}" for one in violations)
        raise ServeError(Reason.INVALID_ARGUMENT, texts, violations=tuple(violations))
    return Tenant(
        name=message.name,
        role=_ROLES[message.role],
        weight=message.weight if message.HasField("weight") else 1.0,
        class_ceiling=PRIORITIES[message.class_ceiling] if message.class_ceiling else PriorityClass.INTERACTIVE,
        models=frozenset(message.models.names) if message.HasField("models") else None,
        adapters=frozenset(message.adapters.names) if message.HasField("adapters") else None,
        quotas=Quotas(**{field.name: limit for field, limit in message.quotas.ListFields()}),
        enabled=not message.disabled,
    )


def tenant_to_proto(tenant: Tenant, certificate_names: Iterable[str]) -> admin_service_pb2.Tenant:
    """Returns the public message of a tenant."""
    quotas = {name: getattr(tenant.quotas, name) for name in _QUOTAS}
    return admin_service_pb2.Tenant(
        name=tenant.name,
        role=_ROLE_NUMBERS[tenant.role],
        weight=tenant.weight,
        class_ceiling=PRIORITY_NUMBERS[tenant.class_ceiling],
        models=_names(tenant.models),
        adapters=_names(tenant.adapters),
        quotas=admin_service_pb2.Quotas(**{name: limit for name, limit in quotas.items() if limit is not None}),
        certificate_names=sorted(certificate_names),
        disabled=not tenant.enabled,
    )


def key_to_proto(key: ApiKey) -> admin_service_pb2.Key:
    """Returns the public message of a key, without its secret or its hash."""
    return admin_service_pb2.Key(
        key_id=key.key_id,
        tenant=key.tenant,
        label=key.label,
        create_time=timestamp(key.created_s),
        expire_time=None if key.expires_s is None else timestamp(key.expires_s),
        revoke_time=None if key.revoked_s is None else timestamp(key.revoked_s),
    )


def seconds(duration: Duration, field: str, max_s: float = MAX_LIFETIME_S) -> float:
    """Returns a duration in seconds. Raises INVALID_ARGUMENT if it is negative or above the maximum."""
    value_s = duration.seconds + duration.nanos / 1e9
    if not 0 <= value_s <= max_s:
        raise invalid(field, f"got {value_s:g} s, must be in [0, {max_s:g}] s")
    return value_s


def timestamp(at_s: float) -> Timestamp:
    """Returns the Timestamp of a time in seconds since the epoch."""
    at_us = round(at_s * 1e6)
    return Timestamp(seconds=at_us // 1_000_000, nanos=at_us % 1_000_000 * 1_000)


def microseconds(moment: Timestamp) -> int:
    """Returns microseconds since the epoch."""
    return moment.seconds * 1_000_000 + moment.nanos // 1_000


def audit_to_proto(at_s: float, actor: str, action: str, subject: str, details: Mapping[str, Any]) -> admin_service_pb2.AuditEntry:
    """Returns the public message of an entry in the audit log."""
    return admin_service_pb2.AuditEntry(
        time=timestamp(at_s), actor=actor, action=action, subject=subject, details_json=json.dumps(details, sort_keys=True)
    )


def page_size(requested: int, field: str = "page_size") -> int:
    """Returns the requested page size, or 100 if it is 0. Raises INVALID_ARGUMENT above 1,000."""
    if requested > 1_000:
        raise invalid(field, f"got {requested}, must be in [1, 1000]")
    return requested or 100


def _violations(message: admin_service_pb2.Tenant) -> Iterable[FieldViolation]:
    if not NAME.fullmatch(message.name):
        description = f"got {message.name!r}, must be 1 to 63 characters of [a-z0-9._-], the first a letter or digit"
        yield FieldViolation("tenant.name", description)
    if message.role not in _ROLES:
        yield FieldViolation("tenant.role", f"got {message.role}, must be one of {', '.join(admin_service_pb2.Role.keys())}")
    if message.class_ceiling not in PRIORITIES:
        allowed = ", ".join(generation_pb2.PriorityClass.keys())
        yield FieldViolation("tenant.class_ceiling", f"got {message.class_ceiling}, must be one of {allowed}")
    if message.HasField("weight") and not (math.isfinite(message.weight) and 0 < message.weight <= MAX_WEIGHT):
        yield FieldViolation("tenant.weight", f"got {message.weight:g}, must be in (0, {MAX_WEIGHT:g}]")
    for name in _QUOTAS:
        if (limit := getattr(message.quotas, name)) > MAX_LIMIT:
            yield FieldViolation(f"tenant.quotas.{name}", f"got {limit}, must be in [0, 2^62]")
    yield from _invalid_names("tenant.models.names", message.models.names)
    yield from _invalid_names("tenant.adapters.names", message.adapters.names)
    yield from _invalid_names("tenant.certificate_names", message.certificate_names)


def _invalid_names(field: str, names: Sequence[str]) -> Iterable[FieldViolation]:
    for position, name in enumerate(names):
        if not 1 <= len(name) <= _MAX_NAME_CHARACTERS:
            yield FieldViolation(f"{field}[{position}]", f"got {name!r}, must have 1 to {_MAX_NAME_CHARACTERS} characters")


def _names(names: frozenset[str] | None) -> admin_service_pb2.Names | None:
    return None if names is None else admin_service_pb2.Names(names=sorted(names))
