"""The interface of a scaling policy, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autoscaling.signals import PoolSignals, PoolSpec

State = Mapping[str, Any]
"""The memory of a policy as a JSON-serializable mapping, empty at first. Only the policy reads its contents. Callers store it, so that a
policy continues after its process restarts."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of a policy."""

    replicas: int
    """The number of replicas that the pool should have."""
    reason: str
    """Why, in words for logs and operators."""


class Policy(Protocol):
    """A pure function from a pool's signals to its replica count: equal arguments give equal results.

    It may be called at any interval, from several times a second to once a minute.
    """

    def __call__(self, signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        """Returns a decision within the spec's bounds and the state for the next call. All calls take `now_s` from one monotonic clock."""
        ...
