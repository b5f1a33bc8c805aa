"""Tenants: their roles, priority classes, weights and quotas."""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Valid names of tenants."""

ANONYMOUS = "anonymous"
"""Name of the tenant for callers without credentials, if anonymous access is allowed."""


class PriorityClass(IntEnum):
    """Priority of a request. Lower values are served first."""

    SYSTEM = 1
    INTERACTIVE = 2
    DEFAULT = 3
    BULK = 4


class Role(StrEnum):
    """What a tenant's credentials allow. No role includes another."""

    TENANT = "tenant"
    """Runs inference and batch jobs."""
    OPERATOR = "operator"
    """Observes the cluster and drains replicas."""
    ADMIN = "admin"
    """Manages tenants and API keys."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits on a tenant's use; None means unlimited. A minute is any 60 s, a day is a calendar day in UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ValueError(f"{name} {limit} must not be negative")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and what it may use."""

    name: str
    role: Role = Role.TENANT
    weight: float = 1.0
    """Share of a full cluster, relative to other tenants; above 0."""
    class_ceiling: PriorityClass = PriorityClass.INTERACTIVE
    """Highest priority class that its requests may have."""
    models: frozenset[str] | None = None
    """Models it may use; None allows all."""
    adapters: frozenset[str] | None = None
    """Adapters it may use; None allows all."""
    quotas: Quotas = Quotas()
    enabled: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not self.weight > 0:
            raise ValueError(f"tenant {self.name!r}, weight {self.weight}")

    def allowed_class(self, requested: PriorityClass) -> PriorityClass:
        """Returns the class that a request of this tenant gets: the requested one, but no higher than the ceiling."""
        return max(requested, self.class_ceiling)
