"""What a client is told when no replica takes its request, and when trying again makes sense.

When every replica is full, clients are spread over the slots that will come free. A pool with T outstanding tokens over R requests
that generates V tokens a second frees a slot about every T / V / R seconds (T counts the most that requests may generate, so this
errs to the long side). Each refused client is promised the next slot of that rhythm: the first waits one interval, the one behind it two.
"""

from dataclasses import dataclass

from neox_serve.core.cluster import Demand
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.routing import RoutingFailure

SHORTEST_RETRY_S = 0.05
LONGEST_RETRY_S = 30.0
UNKNOWN_SLOT_INTERVAL_S = 0.5
"""Taken where a pool has not yet reported a rate."""
NOT_READY_RETRY_S = 1.0
"""No rate tells when a replica comes; a restarted one takes seconds, and asking costs next to nothing."""


@dataclass(frozen=True, slots=True)
class PoolFlow:
    """Sums over the ready replicas of a pool."""

    requests: int
    tokens: int
    tokens_per_second: float

    @property
    def slot_interval_s(self) -> float:
        """Seconds between two slots that come free."""
        if self.tokens_per_second <= 0 or self.requests == 0:
            return UNKNOWN_SLOT_INTERVAL_S
        return self.tokens / self.tokens_per_second / self.requests


def next_slot_s(promised_until_s: float, flow: PoolFlow, now_s: float) -> float:
    """When the slot comes free that the next refused client is promised; promises reach LONGEST_RETRY_S ahead at most."""
    slot_s = max(promised_until_s, now_s) + flow.slot_interval_s
    return min(max(slot_s, now_s + SHORTEST_RETRY_S), now_s + LONGEST_RETRY_S)


def refusal(failure: RoutingFailure, demand: Demand, retry_after_s: float) -> ServeError:
    """The error for a failure. retry_after_s counts where waiting helps."""
    match failure:
        case RoutingFailure.UNKNOWN_MODEL:
            return ServeError(Reason.UNKNOWN_MODEL, f"no model {demand.model!r} is served here", {"model": demand.model})
        case RoutingFailure.NOT_READY:
            message = f"no {demand.pool} replica of {demand.model!r} is ready"
            return ServeError(Reason.NO_READY_REPLICA, message, {"pool": demand.pool}, NOT_READY_RETRY_S)
        case RoutingFailure.FULL:
            message = f"all {demand.pool} replicas of {demand.model!r} have all the requests they take"
            return ServeError(Reason.OVERLOADED, message, {"pool": demand.pool}, retry_after_s)
