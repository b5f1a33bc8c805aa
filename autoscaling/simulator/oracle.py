"""A policy that knows the future traffic, as a reference for other policies.

It is not a lower bound: it plans each time segment separately and counts replicas by the mean cost of requests, so a real policy may use
less in a small pool with steady traffic.
"""

from bisect import bisect_right
from collections.abc import Iterable

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.demand_replay import add_demand, replicas_needed
from autoscaling.signals import PoolSignals, PoolSpec
from autoscaling.simulator.engine import Request, Urgency

_BIN_S = 1.0


def oracle(requests: Iterable[Request], spec: PoolSpec, startup_s: float, headroom: float = 1.0, segment_s: float = 30.0) -> Policy:
    """Returns a policy that provides the fewest replicas for each segment of time, requested one start-up time ahead.

    `headroom` scales the demand; the comparison searches for the smallest value that meets the targets.
    """
    bins: list[float] = []
    for request in requests:
        if request.urgency is not Urgency.BULK:
            lengths = request.prompt_tokens, request.output_tokens
            add_demand(bins, int(request.at_s / _BIN_S), _BIN_S, headroom, lengths, spec.capacity, spec.targets.tpot_s)
    width = int(segment_s / _BIN_S)
    schedule = [
        max(
            1,
            spec.min_replicas,
            replicas_needed(
                bins[begin : begin + width],
                bin_s=_BIN_S,
                patience_s=0.8 * spec.targets.ttft_s,
                miss_fraction=0.0,
                max_replicas=spec.max_replicas,
            ),
        )
        for begin in range(0, len(bins), width)
    ]
    begins_s = [place * segment_s for place in range(len(schedule))]
    # Replicas are requested a little early, because start-up times vary.
    lead_s = 1.15 * startup_s + 2.0

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        first = max(0, bisect_right(begins_s, now_s) - 1)
        last = max(first, bisect_right(begins_s, now_s + lead_s) - 1)
        ahead = schedule[first : last + 1]
        return Decision(max(ahead, default=signals.replicas), "needed by the future traffic"), state

    return policy
