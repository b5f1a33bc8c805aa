"""The number of replicas that a recorded demand needs, found by replaying the demand against a queue for each candidate count.

Demand is measured in replicas: the work that arrives in one second, divided by the work that one replica does in a second. Demand beyond
the replicas' capacity waits in a backlog, and a request that would wait longer than the patience is missed. A short burst therefore costs
nothing, and a rare long burst costs only as much as the targets require.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, repeat
from operator import add

from autoscaling.signals import Capacity

REACTION_THRESHOLD = 1.1
"""The reactive part of the policy scales up if it expects more than this multiple of the base. The base must absorb smaller variations."""
_MAX_ANSWER_BINS = 100
_MAX_RISE = 1.4
"""Maximum factor by which a rise is extrapolated."""
_MAX_BACKLOG_PATIENCES = 15.0
"""Maximum backlog as a multiple of the patience: 24 s of work for a TTFT target of 2 s. Longer waiting requests have left or were
refused."""
_MAX_CANDIDATES = 10
"""Approximate number of base counts that are compared."""


def add_demand(
    bins: list[float], place: int, bin_s: float, requests: float, lengths: tuple[float, float], capacity: Capacity, tpot_s: float
) -> None:
    """Adds the demand of requests that arrive in bin `place`.

    `lengths` are the input and output tokens of each request. The prompt's demand falls in the bin of arrival. The answer's demand is
    spread over the bins in which it is generated, because during that time the request is one of many sequences in every step.
    """
    total = requests * capacity.replicas_of_request(*lengths, tpot_s) / bin_s
    prompt = requests * capacity.replicas_of_prompt(*lengths, tpot_s) / bin_s
    width = max(1, min(_MAX_ANSWER_BINS, round(lengths[1] * tpot_s / bin_s)))
    bins.extend([0.0] * (place + width - len(bins)))
    bins[place] += prompt
    for each in range(place, place + width):
        bins[each] += (total - prompt) / width


def extrapolate_rise(newest: float, before: float, earlier: float, ahead_windows: float) -> float:
    """Returns the demand expected `ahead_windows` windows from now, given the means of the last three windows.

    Demand that has risen twice is extrapolated by the smaller rise, up to a limit that such rises rarely exceed.
    """
    rise = newest - before
    rise = min(rise, before - earlier)
    if rise <= 0:
        return newest
    expected, limit = newest + rise * ahead_windows, _MAX_RISE * newest
    return expected if expected < limit else limit


def reactive_replicas(demand: Sequence[float], *, window: int, delay: int, hold: int, ahead_windows: float) -> list[float]:
    """Returns the replicas that a reactive policy has ready in each bin.

    This is the maximum demand that `extrapolate_rise` predicted between `delay` and `delay + hold` bins earlier. All lengths are in bins.
    """
    ready, sums = [0.0] * len(demand), [0.0, *accumulate(demand)]
    means = [(after - before) / window for before, after in zip(sums, sums[window:], strict=False)]
    # The first prediction uses the first three windows, which end at bin 3 * window.
    predictions = map(extrapolate_rise, means[2 * window :], means[window:], means, repeat(ahead_windows))
    highest: deque[tuple[int, float]] = deque()
    first = 3 * window + delay
    for place, expected in zip(range(first, len(demand)), predictions, strict=False):
        while highest and highest[-1][1] <= expected:
            highest.pop()
        highest.append((place, expected))
        if highest[0][0] < place - hold:
            highest.popleft()
        ready[place] = highest[0][1]
    return ready


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The result of replaying a demand."""

    missed_fraction: float
    """Fraction of the demand that waited longer than the patience."""
    replicas: float
    """Mean number of replicas over the bins."""


def replay(demand: Sequence[float], base: float, reactive: Sequence[float], bin_s: float, patience_s: float) -> ReplayResult:
    """Replays the demand against `base` replicas, or against the reactive replicas in bins in which these are clearly more.

    `demand` holds means over bins of `bin_s` seconds. `reactive` is the result of `reactive_replicas`.
    """
    provided = _provided(base, reactive)
    missed_fraction = _Replayer(demand, bin_s, patience_s, max_missed_fraction=1.0).missed_fraction(provided)
    return ReplayResult(missed_fraction, _total(provided) / len(demand) if demand else 0.0)


def replicas_needed(
    demand: Sequence[float],
    *,
    bin_s: float,
    patience_s: float,
    miss_fraction: float,
    max_replicas: int,
    reactive: Sequence[float] | None = None,
) -> int:
    """Returns the base count that misses at most `miss_fraction` of the demand and costs the least, including reactive replicas.

    `reactive` is the result of `reactive_replicas`; None means that the policy does not react. The result is at most `max_replicas`, even
    if that count misses more, and 0 if there is no demand.
    """
    mean, peak = (sum(demand) / len(demand), max(demand)) if demand else (0.0, 0.0)
    if not peak:
        return 0
    lowest, highest = max(1, math.floor(mean)), max(1, min(max_replicas, math.ceil(peak)))
    replayer = _Replayer(demand, bin_s, patience_s, miss_fraction)
    low = lowest
    while low < highest:
        middle = (low + highest) // 2
        if replayer.missed_fraction([middle] * len(demand)) <= miss_fraction:
            highest = middle
        else:
            low = middle + 1
    if reactive is None or not any(reactive):
        return highest
    step = max(1, math.ceil((highest - lowest) / _MAX_CANDIDATES))
    candidates: set[int] = {*range(lowest, highest + 1, step), highest}
    provided = {base: _provided(base, reactive) for base in candidates}
    costs = {base: _total(replicas) / len(demand) for base, replicas in provided.items()}
    # In order of cost; the first candidate that keeps the promise is the result. Among equal costs, the largest base is preferred.
    for base in sorted(candidates, key=lambda base: (costs[base], -base)):
        if replayer.missed_fraction(provided[base]) <= miss_fraction:
            return base
    return highest


def _provided(base: float, reactive: Sequence[float]) -> list[float]:
    """Returns the replicas in each bin."""
    threshold = REACTION_THRESHOLD * base
    return [ready if ready > threshold else base for ready in reactive]


def _total(series: Sequence[float]) -> float:
    """Returns the sum in order. The built-in sum compensates rounding errors, and so would prefer other candidates among equal ones."""
    return reduce(add, series, 0.0)


class _Replayer:
    """Replays one demand against different replica counts. A replay stops once it has missed more than `max_missed_fraction`."""

    def __init__(self, demand: Sequence[float], bin_s: float, patience_s: float, max_missed_fraction: float) -> None:
        self._demand = demand
        self._total = _total(demand)
        self._bin_s = bin_s
        self._patience_s = patience_s
        self._max_missed_fraction = max_missed_fraction

    def missed_fraction(self, provided: Sequence[float]) -> float:
        """Returns the fraction of the demand that waits longer than the patience; an incomplete value above the maximum if it stopped."""
        total, bin_s, patience_s = self._total, self._bin_s, self._patience_s
        backlog = missed = 0.0
        for each, replicas in zip(self._demand, provided, strict=True):
            if each <= replicas and not backlog:
                continue
            before = backlog
            limit = patience_s * replicas
            backlog += (each - replicas) * bin_s
            if backlog < 0:
                backlog = 0.0
            if each and (before > limit or backlog > limit):
                # Requests that arrive while the backlog exceeds the limit are missed: all of the bin's, or a part if it crosses the limit.
                over, crossed = max(before, backlog) - limit, abs(backlog - before)
                missed += each * (min(1.0, over / crossed) if min(before, backlog) < limit else 1.0)
                if missed / total > self._max_missed_fraction:
                    break
                # A request does not wait forever. Beyond a multiple of the patience, its client has left or it was refused.
                backlog = min(backlog, limit * _MAX_BACKLOG_PATIENCES)
        return missed / total if total else 0.0
