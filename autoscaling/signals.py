"""What a policy sees: plain values, one moment of one pool. Standard library only (Ray pickles policies by value)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolSignals:
    """One pool at one moment. requests: dispatched and not ended, over all its replicas."""

    now_s: float
    current_replicas: int
    requests: float


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What the operator wants of a pool. target_requests: requests in flight that one replica should carry."""

    min_replicas: int
    max_replicas: int
    target_requests: float
