"""A policy that knows the traffic to come: a plan that others can be held against. It is no bound: it takes each segment for itself, and
counts replicas by their mean cost, so that in small pools with even traffic a policy may do with less."""

from bisect import bisect_right
from collections.abc import Iterable

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.demand_replay import enter, needed
from autoscaling.signals import PoolSignals, PoolSpec
from autoscaling.simulator.engine import Request, Urgency

_BIN_S = 1.0


def oracle(requests: Iterable[Request], spec: PoolSpec, startup_s: float, headroom: float = 1.0, segment_s: float = 30.0) -> Policy:
    """For each segment of time the fewest replicas that keep up with what will come in it, asked for a start-up ahead.

    headroom: as much more demand is provided for as is needed to meet the targets, which is found by trying.
    """
    bins: list[float] = []
    for request in requests:
        if request.urgency is not Urgency.BULK:
            lengths = request.prompt_tokens, request.output_tokens
            enter(bins, int(request.at_s / _BIN_S), _BIN_S, headroom, lengths, spec.capacity, spec.targets.tpot_s)
    width = int(segment_s / _BIN_S)
    schedule = [
        max(
            1,
            spec.min_replicas,
            needed(
                bins[begin : begin + width], bin_s=_BIN_S, patience_s=0.8 * spec.targets.ttft_s, miss_fraction=0.0, most=spec.max_replicas
            ),
        )
        for begin in range(0, len(bins), width)
    ]
    begins_s = [place * segment_s for place in range(len(schedule))]
    # Started a little early: a start-up is not always the same.
    lead_s = 1.15 * startup_s + 2.0

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        first = max(0, bisect_right(begins_s, now_s) - 1)
        last = max(first, bisect_right(begins_s, now_s + lead_s) - 1)
        ahead = schedule[first : last + 1]
        return Decision(max(ahead, default=signals.replicas), "what will come needs it"), state

    return policy
