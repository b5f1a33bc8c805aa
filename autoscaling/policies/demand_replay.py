"""How many replicas a recorded demand needs: the demand replayed against a queue, once for each count that is tried.

Demand is in replicas: what comes in one second, over what one replica does in a second. What comes beyond what the replicas do waits, and a
request that would wait longer than it may is missed. So a short burst costs nothing, and a rare long one only as much as targets allow.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from autoscaling.signals import Capacity

_LONGEST_ANSWER_BINS = 100


def enter(
    bins: list[float], place: int, bin_s: float, requests: float, lengths: tuple[float, float], capacity: Capacity, tpot_s: float
) -> None:
    """Adds what requests of these input and output tokens will take of replicas, from the bin on in which they come: the prompt at once,
    the answer over the time that it is written in, since its place in the batch is one among others in all steps of that time."""
    whole = requests * capacity.replicas_of_request(*lengths, tpot_s) / bin_s
    prompt = requests * capacity.replicas_of_prompt(*lengths, tpot_s) / bin_s
    width = max(1, min(_LONGEST_ANSWER_BINS, round(lengths[1] * tpot_s / bin_s)))
    bins.extend([0.0] * (place + width - len(bins)))
    bins[place] += prompt
    for each in range(place, place + width):
        bins[each] += (whole - prompt) / width


def rising(newest: float, before: float, earlier: float, ahead: float) -> float:
    """Demand `ahead` windows from now, after its means over three windows: led on where it has risen twice, by the smaller rise,
    and no further than a rise of that kind is likely to go."""
    return min(newest + max(0.0, min(newest - before, before - earlier)) * ahead, _MAX_RISE * newest)


_MAX_RISE = 1.4


def reaction(asked: Sequence[float], *, window: int, delay: int, hold: int, ahead: float) -> list[float]:
    """What a policy that follows demand has ready in each bin: the most of what `rising` led it to expect between delay and delay + hold
    bins ago."""
    ready, sums = [0.0] * len(asked), [0.0, *accumulate(asked)]
    means = [(later - earlier) / window for earlier, later in zip(sums, sums[window:], strict=False)]
    highest: deque[tuple[int, float]] = deque()
    for place in range(len(asked)):
        ended = place - delay
        if ended >= 3 * window:
            expected = rising(means[ended - window], means[ended - 2 * window], means[ended - 3 * window], ahead)
            while highest and highest[-1][1] <= expected:
                highest.pop()
            highest.append((ended, expected))
        while highest and highest[0][0] < ended - hold:
            highest.popleft()
        ready[place] = highest[0][1] if highest else 0.0
    return ready


@dataclass(frozen=True, slots=True)
class Replayed:
    """Of the demand, the part that waited longer than it may; and replicas that there were, mean over the bins."""

    missed_fraction: float
    replicas: float


def replay(demand: Sequence[float], base: float, reacted: Sequence[float], bin_s: float, patience_s: float) -> Replayed:
    """The demand, means over bins of bin_s each, against base replicas, or as many as a reaction has ready where that is clearly more."""
    backlog = missed = total = there = 0.0
    least = REACTED * base
    for each, ready in zip(demand, reacted, strict=True):
        replicas = ready if ready > least else base
        there += replicas
        if not backlog and each <= replicas:
            total += each
            continue
        before = backlog
        limit = patience_s * replicas
        backlog += (each - replicas) * bin_s
        if backlog < 0:
            backlog = 0.0
        total += each
        if each and (before > limit or backlog > limit):
            # Those that came while the backlog was past the limit: all of them, or where it crossed, a part.
            over, crossed = max(before, backlog) - limit, abs(backlog - before)
            missed += each * (min(1.0, over / crossed) if min(before, backlog) < limit else 1.0)
            # Nobody waits for ever: who has been missed for long leaves, or is refused.
            backlog = min(backlog, limit * _LONGEST_BACKLOG)
    return Replayed(missed / total if total else 0.0, there / len(demand) if demand else 0.0)


REACTED = 1.1
"""How many times the base demand must be before it is followed; what is less, noise, the base has to bear."""
_LONGEST_BACKLOG = 15.0
"""In patiences: half a minute's queue for a target of 2 s; what is beyond is refused or gone."""
_TRIED = 10


def needed(
    demand: Sequence[float], *, bin_s: float, patience_s: float, miss_fraction: float, most: int, reacted: Sequence[float] | None = None
) -> int:
    """The base, at most `most` replicas, that misses no more than miss_fraction of the demand and with what is followed beyond it costs the
    least. reacted: of `reaction`; absent: nothing is followed. 0 of no demand."""
    mean, peak = (sum(demand) / len(demand), max(demand)) if demand else (0.0, 0.0)
    if not peak:
        return 0
    still = [0.0] * len(demand)
    low, high = max(1, math.floor(mean)), max(1, min(most, math.ceil(peak)))
    first = low
    while low < high:
        middle = (low + high) // 2
        if replay(demand, middle, still, bin_s, patience_s).missed_fraction <= miss_fraction:
            high = middle
        else:
            low = middle + 1
    if reacted is None or not any(reacted):
        return high
    step = max(1, math.ceil((high - first) / _TRIED))
    tried = {base: replay(demand, base, reacted, bin_s, patience_s) for base in range(first, high + 1, step)} | {
        high: replay(demand, high, reacted, bin_s, patience_s)
    }
    keeping = [base for base, found in tried.items() if found.missed_fraction <= miss_fraction]
    return min(keeping, key=lambda base: (tried[base].replicas, -base), default=high)
