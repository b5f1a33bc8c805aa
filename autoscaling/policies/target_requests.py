"""Policies: pure functions from what is seen of a pool to how many replicas it should have."""

import math
from dataclasses import dataclass

from autoscaling.signals import PoolSignals, PoolSpec


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas a pool should have, and why, in words for logs."""

    replicas: int
    reason: str


def target_requests(signals: PoolSignals, spec: PoolSpec) -> Decision:
    """As many replicas as carry the requests in flight at `target_requests` each, within the spec's bounds.

    Source: the rule of Ray Serve's `target_ongoing_requests`, fed with the engines' own counts, because Serve does not see our requests.
    """
    wanted = math.ceil(signals.requests / spec.target_requests)
    replicas = max(spec.min_replicas, min(spec.max_replicas, wanted))
    bound = "" if replicas == wanted else f", bounded to [{spec.min_replicas}, {spec.max_replicas}]"
    return Decision(replicas, f"{signals.requests:g} requests at {spec.target_requests:g} a replica want {wanted}{bound}")
