"""What a policy is, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autoscaling.signals import PoolSignals, PoolSpec

State = Mapping[str, Any]
"""What a policy remembers, as JSON would hold it; empty at first. It belongs to the policy: nobody else looks inside, but anybody may keep
it for a policy whose process ends."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas a pool should have, and why, in words for logs and people."""

    replicas: int
    reason: str


class Policy(Protocol):
    """From what is seen of a pool to how many replicas it should have. Pure: equal arguments have equal answers. It may be asked at any
    interval, several times a second or once in a minute."""

    def __call__(self, signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        """The decision, within the spec's bounds, and what to remember for the next call. now_s: of one and the same steady clock."""
        ...
