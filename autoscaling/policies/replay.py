"""How many replicas a recorded demand needs: the demand replayed against a queue, once for each count that is tried.

Demand is in replicas: what comes in one second, over what one replica does in a second. What comes beyond what the replicas do waits, and a
request that would wait longer than it may is missed. So a short burst costs nothing, and a rare long one only as much as targets allow.
"""

import math
from collections.abc import Sequence

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


def missed_fraction(demand: Sequence[float], replicas: float, bin_s: float, patience_s: float) -> float:
    """Of the demand, the part that waits longer than patience_s. demand: means over bins of bin_s each."""
    backlog = missed = total = 0.0
    limit = patience_s * replicas
    for each in demand:
        if not each and not backlog:
            continue
        before = backlog
        backlog += (each - replicas) * bin_s
        if backlog < 0:
            backlog = 0.0
        total += each
        over = max(before, backlog) - limit
        if over > 0 and each:
            # Those that came while the backlog was past the limit: all of them, or where it crossed, a part.
            crossed = abs(backlog - before)
            missed += each * (min(1.0, over / crossed) if min(before, backlog) < limit else 1.0)
            # Nobody waits for ever: who has been missed for long leaves, or is refused.
            backlog = min(backlog, limit * _LONGEST_BACKLOG)
    return missed / total if total else 0.0


_LONGEST_BACKLOG = 15.0
"""In patiences: half a minute's queue for a target of 2 s; what is beyond is refused or gone."""


def needed(demand: Sequence[float], *, bin_s: float, patience_s: float, miss_fraction: float, most: int) -> int:
    """The fewest replicas, at most `most`, that miss no more than miss_fraction of the demand; 0 of none."""
    mean, peak = (sum(demand) / len(demand), max(demand)) if demand else (0.0, 0.0)
    if not peak:
        return 0
    low, high = max(1, math.floor(mean)), max(1, min(most, math.ceil(peak)))
    while low < high:
        middle = (low + high) // 2
        if missed_fraction(demand, middle, bin_s, patience_s) <= miss_fraction:
            high = middle
        else:
            low = middle + 1
    return high
