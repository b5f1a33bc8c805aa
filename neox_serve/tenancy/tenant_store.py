"""Tenants, API keys and certificates in the database.

Every change is one transaction that also writes an audit log entry and increments the revision.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from neox_serve.core.errors import ServeError, invalid
from neox_serve.core.tenancy.api_keys import ApiKey, NewKey, new_key
from neox_serve.core.tenancy.tenant_directory import TenantDirectory
from neox_serve.core.tenancy.tenants import PriorityClass, Quotas, Role, Tenant
from neox_serve.tenancy import tables

_QUOTAS = tuple(Quotas.__slots__)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change in the audit log."""

    at_s: float
    """Seconds since the epoch."""
    actor: str
    """Who made the change."""
    action: str
    """What was done, for example `tenant.add`."""
    subject: str
    """The tenant or key that was changed."""
    details: Mapping[str, Any]
    """The new values."""


class TenantStore:
    """Reads and changes tenants in the database. All calls block, so they must not run on the event loop."""

    def __init__(
        self, database: Engine, *, clock: Callable[[], float] = time.time, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """clock: returns seconds since the epoch."""
        self._database = database
        self._clock = clock
        self._random_bytes = random_bytes

    # Tenants

    def add(self, tenant: Tenant, actor: str, certificates: tuple[str, ...] = ()) -> None:
        """Adds a tenant. Raises INVALID_ARGUMENT if its name or a certificate is taken."""
        with self._change(actor, "tenant.add", tenant.name, {**_row(tenant), "certificates": certificates}) as connection:
            try:
                connection.execute(insert(tables.tenants).values(created_s=self._clock(), **_row(tenant)))
            except IntegrityError as error:
                raise invalid("tenant.name", f"{tenant.name!r} already exists") from error
            _set_certificates(connection, tenant.name, certificates)

    def change(self, tenant: Tenant, actor: str, certificates: tuple[str, ...] | None = None) -> None:
        """Replaces the values of a tenant. certificates: None keeps the present ones. Raises INVALID_ARGUMENT for an unknown tenant."""
        details = _row(tenant) | ({} if certificates is None else {"certificates": certificates})
        with self._change(actor, "tenant.set", tenant.name, details) as connection:
            changed = connection.execute(update(tables.tenants).where(tables.tenants.c.name == tenant.name).values(**_row(tenant)))
            if changed.rowcount == 0:
                raise unknown_tenant(tenant.name)
            if certificates is not None:
                _set_certificates(connection, tenant.name, certificates)

    def tenant(self, name: str) -> Tenant:
        """Returns a tenant. Raises INVALID_ARGUMENT if there is none with this name."""
        with self._database.connect() as connection:
            row = connection.execute(select(tables.tenants).where(tables.tenants.c.name == name)).mappings().first()
        if row is None:
            raise unknown_tenant(name)
        return _tenant(row)

    def directory(self) -> TenantDirectory:
        """Returns all tenants, keys and certificates in one consistent read."""
        with self._database.connect() as connection:
            revision = _revision(connection)
            rows = connection.execute(select(tables.tenants).order_by(tables.tenants.c.name)).mappings().all()
            keys = connection.execute(select(tables.api_keys).order_by(tables.api_keys.c.created_s)).mappings().all()
            names = connection.execute(select(tables.certificates)).mappings().all()
        return TenantDirectory(
            tenants={row["name"]: _tenant(row) for row in rows},
            keys={row["key_id"]: ApiKey(**row) for row in keys},
            certificates={row["name"]: row["tenant"] for row in names},
            revision=revision,
        )

    def revision(self) -> int:
        """Returns the revision, which every change increments."""
        with self._database.connect() as connection:
            return _revision(connection)

    # Keys

    def add_key(self, tenant: str, actor: str, *, label: str = "", lifetime_s: float | None = None) -> tuple[NewKey, ApiKey]:
        """Creates a key for a tenant. The text of the key is not stored. Raises INVALID_ARGUMENT for an unknown tenant."""
        made, now_s = new_key(self._random_bytes), self._clock()
        expires_s = None if lifetime_s is None else now_s + lifetime_s
        kept = ApiKey(made.key_id, tenant, made.secret_hash, now_s, expires_s=expires_s, label=label)
        with self._change(actor, "key.add", tenant, {"key_id": made.key_id, "label": label, "expires_s": expires_s}) as connection:
            _require_tenant(connection, tenant)
            connection.execute(insert(tables.api_keys).values(**asdict(kept)))
        return made, kept

    def rotate_keys(self, tenant: str, actor: str, *, overlap_s: float, lifetime_s: float | None = None) -> tuple[NewKey, ApiKey]:
        """Creates a key for a tenant and revokes all others after `overlap_s`. Raises INVALID_ARGUMENT for an unknown tenant."""
        made, now_s = new_key(self._random_bytes), self._clock()
        expires_s = None if lifetime_s is None else now_s + lifetime_s
        kept = ApiKey(made.key_id, tenant, made.secret_hash, now_s, expires_s=expires_s)
        keys = tables.api_keys.c
        with self._change(actor, "key.rotate", tenant, {"key_id": made.key_id, "overlap_s": overlap_s}) as connection:
            _require_tenant(connection, tenant)
            end_s = now_s + overlap_s
            running = (keys.tenant == tenant) & (keys.revoked_s.is_(None) | (keys.revoked_s > end_s))
            connection.execute(update(tables.api_keys).where(running).values(revoked_s=end_s))
            connection.execute(insert(tables.api_keys).values(**asdict(kept)))
        return made, kept

    def revoke_key(self, key_id: str, actor: str) -> None:
        """Revokes a key now. Raises INVALID_ARGUMENT for an unknown key."""
        with self._change(actor, "key.revoke", key_id, {}) as connection:
            where = tables.api_keys.c.key_id == key_id
            if connection.execute(update(tables.api_keys).where(where).values(revoked_s=self._clock())).rowcount == 0:
                raise invalid("key_id", f"there is no key {key_id!r}")

    # The audit log

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """Returns up to `limit` entries, newest first."""
        entries = tables.audit_entries
        with self._database.connect() as connection:
            rows = connection.execute(select(entries).order_by(entries.c.id.desc()).limit(limit)).mappings().all()
        return [AuditEntry(row["at_s"], row["actor"], row["action"], row["subject"], row["details"]) for row in rows]

    @contextmanager
    def _change(self, actor: str, action: str, subject: str, details: Mapping[str, Any]) -> Iterator[Connection]:
        """Runs a transaction that also writes an audit log entry.

        It increments the revision first, so that concurrent changes are serialized.
        """
        with self._database.begin() as connection:
            revisions = tables.revisions
            connection.execute(update(revisions).values(revision=revisions.c.revision + 1))
            yield connection
            entry = AuditEntry(self._clock(), actor, action, subject, dict(details))
            connection.execute(insert(tables.audit_entries).values(**asdict(entry)))


def unknown_tenant(name: str) -> ServeError:
    """Returns the error for an unknown tenant."""
    return replace(invalid("tenant", f"there is no tenant {name!r}"), metadata={"tenant": name})


def _revision(connection: Connection) -> int:
    return connection.execute(select(tables.revisions.c.revision)).scalar() or 0


def _require_tenant(connection: Connection, name: str) -> None:
    if connection.execute(select(tables.tenants.c.name).where(tables.tenants.c.name == name)).first() is None:
        raise unknown_tenant(name)


def _set_certificates(connection: Connection, tenant: str, names: tuple[str, ...]) -> None:
    connection.execute(delete(tables.certificates).where(tables.certificates.c.tenant == tenant))
    for name in names:
        try:
            connection.execute(insert(tables.certificates).values(name=name, tenant=tenant))
        except IntegrityError as error:
            raise invalid("certificate_names", f"{name!r} belongs to another tenant") from error


def _row(tenant: Tenant) -> dict[str, Any]:
    return {
        "name": tenant.name,
        "role": tenant.role.value,
        "weight": tenant.weight,
        "class_ceiling": int(tenant.class_ceiling),
        "models": None if tenant.models is None else sorted(tenant.models),
        "adapters": None if tenant.adapters is None else sorted(tenant.adapters),
        "enabled": tenant.enabled,
        **{name: getattr(tenant.quotas, name) for name in _QUOTAS},
    }


def _tenant(row: RowMapping) -> Tenant:
    return Tenant(
        name=row["name"],
        role=Role(row["role"]),
        weight=row["weight"],
        class_ceiling=PriorityClass(row["class_ceiling"]),
        models=None if row["models"] is None else frozenset(row["models"]),
        adapters=None if row["adapters"] is None else frozenset(row["adapters"]),
        quotas=Quotas(**{name: row[name] for name in _QUOTAS}),
        enabled=row["enabled"],
    )
