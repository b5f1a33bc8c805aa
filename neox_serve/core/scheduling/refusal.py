"""The error a client gets when no replica takes its request, and when it should try again.

If every replica is full, retries are spread over the slots that will become free. A pool with T outstanding tokens in R requests that
generates V tokens per second frees a slot about every T / V / R seconds. T counts the maximum that each request may generate, so the
estimate tends to be too long. Each refused client is promised the next slot: the first waits one interval, the one behind it two.
"""

from dataclasses import dataclass

from neox_serve.core.cluster import Demand
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.routing import RoutingFailure

MIN_RETRY_S = 0.05
"""Shortest retry delay that a client is told."""
MAX_RETRY_S = 30.0
"""Longest retry delay that a client is told."""
UNKNOWN_SLOT_INTERVAL_S = 0.5
"""Interval between free slots that is assumed until a pool reports a rate."""
NOT_READY_RETRY_S = 1.0
"""Retry delay if no replica is ready. A restarted replica takes seconds, and a retry costs almost nothing."""


@dataclass(frozen=True, slots=True)
class PoolFlow:
    """Sums over the ready replicas of a pool."""

    requests: int
    """Outstanding requests."""
    tokens: int
    """Outstanding tokens of these requests."""
    tokens_per_second: float
    """Output of the replicas."""

    @property
    def slot_interval_s(self) -> float:
        """Seconds between two slots that become free."""
        if self.tokens_per_second <= 0 or self.requests == 0:
            return UNKNOWN_SLOT_INTERVAL_S
        return self.tokens / self.tokens_per_second / self.requests


def next_slot_s(promised_until_s: float, flow: PoolFlow, now_s: float) -> float:
    """Returns when the slot becomes free that the next refused client is promised, at most MAX_RETRY_S from now.

    promised_until_s: the slot that the previous refused client was promised.
    """
    slot_s = max(promised_until_s, now_s) + flow.slot_interval_s
    return min(max(slot_s, now_s + MIN_RETRY_S), now_s + MAX_RETRY_S)


def refusal(failure: RoutingFailure, demand: Demand, retry_after_s: float) -> ServeError:
    """Returns the error for a routing failure. retry_after_s: used only if the pool is full."""
    match failure:
        case RoutingFailure.UNKNOWN_MODEL:
            return ServeError(Reason.UNKNOWN_MODEL, f"model {demand.model!r} is not served here", {"model": demand.model})
        case RoutingFailure.NOT_READY:
            message = f"no {demand.pool} replica of {demand.model!r} is ready"
            return ServeError(Reason.NO_READY_REPLICA, message, {"pool": demand.pool}, NOT_READY_RETRY_S)
        case RoutingFailure.FULL:
            message = f"all {demand.pool} replicas of {demand.model!r} are full"
            return ServeError(Reason.OVERLOADED, message, {"pool": demand.pool}, retry_after_s)
