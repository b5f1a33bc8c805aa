"""Who uses the platform, and how much of it: tenants, their role, their share and their limits."""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""A tenant's name."""

ANONYMOUS = "anonymous"
"""The tenant of callers without credentials, where they are let in at all."""


class PriorityClass(IntEnum):
    """Which requests go first; a smaller value goes before a greater one."""

    SYSTEM = 1
    INTERACTIVE = 2
    DEFAULT = 3
    BULK = 4


class Role(StrEnum):
    """What a tenant's credentials are for. No role includes another."""

    TENANT = "tenant"  # runs the model
    OPERATOR = "operator"  # watches and steers the cluster
    ADMIN = "admin"  # keeps the tenants


@dataclass(frozen=True, slots=True)
class Quotas:
    """The most a tenant may use; None: as much as it likes. A minute is any 60 s, a day is a calendar day in UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ValueError(f"{name} {limit}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant. weight: its share of a full cluster, against the others'. models, adapters: those it may use; None: all."""

    name: str
    role: Role = Role.TENANT
    weight: float = 1.0
    class_ceiling: PriorityClass = PriorityClass.INTERACTIVE
    models: frozenset[str] | None = None
    adapters: frozenset[str] | None = None
    quotas: Quotas = Quotas()
    enabled: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not self.weight > 0:
            raise ValueError(f"tenant {self.name!r}, weight {self.weight}")

    def allowed_class(self, asked: PriorityClass) -> PriorityClass:
        """The class that a request of this tenant gets: as asked, or the ceiling where that is lower."""
        return max(asked, self.class_ceiling)
