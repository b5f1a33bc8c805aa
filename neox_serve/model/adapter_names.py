"""Adapters of the registry: how they are named, and whose they are.

Those that a tenant has trained are named TENANT/NAME and are its own; those of operators bear a plain name and are for all. In the registry
each is a folder of that path.
"""

from collections.abc import Iterable

from neox_serve.core.tenancy.tenants import Tenant


def registered_name(tenant: str, name: str, *, for_all: bool) -> str:
    """The name under which an adapter is served. for_all: an operator has made it."""
    return name if for_all else f"{tenant}/{name}"


def owner_of(adapter: str) -> str:
    """The tenant that an adapter of the registry belongs to; empty where it is for all."""
    return adapter.rpartition("/")[0]


def usable_adapters(tenant: Tenant, configured: Iterable[str], registered: Iterable[str]) -> tuple[str, ...]:
    """Those that a tenant may use: its own; of the others that are for all, where its list names them or it has none."""
    allowed = tenant.adapters
    shared = [*configured, *(name for name in registered if not owner_of(name))]
    own = [name for name in registered if owner_of(name) == tenant.name]
    granted = [name for name in registered if allowed and name in allowed and owner_of(name) not in ("", tenant.name)]
    return (*(name for name in shared if allowed is None or name in allowed), *own, *granted)
