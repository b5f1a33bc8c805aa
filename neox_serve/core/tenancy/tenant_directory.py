"""A snapshot of all tenants with their keys and certificates. It identifies the tenant that a credential belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy import api_keys
from neox_serve.core.tenancy.api_keys import ApiKey
from neox_serve.core.tenancy.tenants import Role, Tenant

INVALID_KEY = "the API key is not valid"
"""The same message for unknown, wrong, expired and revoked keys, so that an attacker learns nothing."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    tenant: Tenant
    credential: str
    """Identifies the credential in logs and in the audit log, without secrets: "key:<key id>", "certificate" or "token:<subject>"."""
    roles: frozenset[Role]

    @property
    def actor(self) -> str:
        """The caller's name in the audit log."""
        return f"{self.tenant.name} ({self.credential})"


UNKNOWN_CALLER = Principal(Tenant("nobody", enabled=False), "none", frozenset())
"""Placeholder for a caller that has not been authenticated yet."""


def anonymous(tenant: Tenant) -> Principal:
    """Returns the principal of a caller without credentials, with all roles. Only for clusters that allow anonymous access."""
    return Principal(tenant, "none", frozenset(Role))


@dataclass(frozen=True, slots=True)
class TenantDirectory:
    """All tenants, keys and certificates at one revision of the database."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    """By name."""
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By key id."""
    certificates: Mapping[str, str] = field(default_factory=dict)
    """Name in a client certificate to the tenant's name."""
    revision: int = -1
    """Increases with every change of the database."""

    def authenticate_key(self, text: str, now_s: float) -> Principal:
        """Returns the owner of an API key. now_s: seconds since the epoch. Raises UNAUTHENTICATED."""
        parsed = api_keys.parse(text)
        key = self.keys.get(parsed[0]) if parsed else None
        if parsed is None or key is None or not api_keys.matches(key, parsed[1]) or not key.usable(now_s):
            raise ServeError(Reason.UNAUTHENTICATED, INVALID_KEY)
        return self.principal_of(key.tenant, f"key:{key.key_id}")

    def authenticate_certificate(self, names: tuple[str, ...]) -> Principal | None:
        """Returns the owner of a client certificate with these names, or None if no tenant has one of them. Raises UNAUTHENTICATED."""
        owner = next((self.certificates[name] for name in names if name in self.certificates), None)
        return None if owner is None else self.principal_of(owner, "certificate")

    def principal_of(self, tenant: str, credential: str) -> Principal:
        """Returns the principal of a tenant whose credential has been verified.

        Raises UNAUTHENTICATED if the tenant does not exist or is disabled.
        """
        known = self.tenants.get(tenant)
        if known is None or not known.enabled:
            raise ServeError(Reason.UNAUTHENTICATED, "the credential's tenant is unknown or disabled")
        return Principal(known, credential, frozenset({known.role}))

    def is_still_valid(self, principal: Principal, now_s: float) -> bool:
        """Returns whether the credential of an authenticated caller would still be accepted."""
        tenant = self.tenants.get(principal.tenant.name)
        kind, _, key_id = principal.credential.partition(":")
        if tenant is None or not tenant.enabled:
            return False
        return kind != "key" or (key_id in self.keys and self.keys[key_id].usable(now_s))
