"""Names and owners of the adapters in the registry.

An adapter that a tenant has trained is named TENANT/NAME and belongs to that tenant. An adapter of the operators has a plain name and is
available to all tenants. In the registry, the folder of an adapter has the same path as its name.
"""

from collections.abc import Iterable

from neox_serve.core.tenancy.tenants import Tenant


def registered_name(tenant: str, name: str, *, for_all: bool) -> str:
    """Returns the name under which an adapter is served. for_all: whether it is available to all tenants."""
    return name if for_all else f"{tenant}/{name}"


def owner_of(adapter: str) -> str:
    """Returns the tenant that owns an adapter; empty if it is available to all."""
    return adapter.rpartition("/")[0]


def usable_adapters(tenant: Tenant, configured: Iterable[str], registered: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the adapters that a tenant may use.

    They are its own adapters, the shared ones (only those on its list, if it has a list), and other tenants' adapters that its list names.
    configured: adapters from the settings. registered: adapters in the registry.
    """
    allowed = tenant.adapters
    shared = [*configured, *(name for name in registered if not owner_of(name))]
    own = [name for name in registered if owner_of(name) == tenant.name]
    granted = [name for name in registered if allowed and name in allowed and owner_of(name) not in ("", tenant.name)]
    return (*(name for name in shared if allowed is None or name in allowed), *own, *granted)
