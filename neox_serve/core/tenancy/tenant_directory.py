"""Who a credential belongs to: a snapshot of all tenants with their keys and certificates."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy import api_keys
from neox_serve.core.tenancy.api_keys import ApiKey
from neox_serve.core.tenancy.tenants import Role, Tenant

NO_SUCH_KEY = "the API key is not valid"
"""Said of unknown, wrong, expired and revoked keys alike: a guesser learns nothing."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. credential: what let it in, without anything secret, for logs and the audit log."""

    tenant: Tenant
    credential: str
    roles: frozenset[Role]

    @property
    def actor(self) -> str:
        """Who it is, for the audit log."""
        return f"{self.tenant.name} ({self.credential})"


UNKNOWN_CALLER = Principal(Tenant("nobody", enabled=False), "none", frozenset())
"""Stands for a caller that is not known yet."""


def anonymous(tenant: Tenant) -> Principal:
    """A caller without credentials, where such are let in: on a machine of one's own, where it may do everything."""
    return Principal(tenant, "none", frozenset(Role))


@dataclass(frozen=True, slots=True)
class TenantDirectory:
    """All tenants by name, keys by key id, certificates' names to tenants' names. revision: grows with every change."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    certificates: Mapping[str, str] = field(default_factory=dict)
    revision: int = -1

    def authenticate_key(self, text: str, now_s: float) -> Principal:
        """The owner of an API key. now_s: since the epoch. Raises UNAUTHENTICATED."""
        parsed = api_keys.parse(text)
        key = self.keys.get(parsed[0]) if parsed else None
        if parsed is None or key is None or not api_keys.matches(key, parsed[1]) or not key.usable(now_s):
            raise ServeError(Reason.UNAUTHENTICATED, NO_SUCH_KEY)
        return self.principal_of(key.tenant, f"key:{key.key_id}")

    def authenticate_certificate(self, names: tuple[str, ...]) -> Principal | None:
        """The owner of a client certificate with these names; None where no tenant is known by any of them."""
        owner = next((self.certificates[name] for name in names if name in self.certificates), None)
        return None if owner is None else self.principal_of(owner, "certificate")

    def principal_of(self, tenant: str, credential: str) -> Principal:
        """A tenant whose credential has been checked. Raises UNAUTHENTICATED where there is no such tenant, or it is disabled."""
        known = self.tenants.get(tenant)
        if known is None or not known.enabled:
            raise ServeError(Reason.UNAUTHENTICATED, "the credential's tenant is unknown or disabled")
        return Principal(known, credential, frozenset({known.role}))

    def is_still_valid(self, principal: Principal, now_s: float) -> bool:
        """Whether what let a caller in some time ago would let it in now."""
        tenant = self.tenants.get(principal.tenant.name)
        kind, _, key_id = principal.credential.partition(":")
        if tenant is None or not tenant.enabled:
            return False
        return kind != "key" or (key_id in self.keys and self.keys[key_id].usable(now_s))
