"""Where demand is going: recorded demand as it would be at the level that lies ahead.

All series are means over bins of one width, oldest first.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median

_MAX_TIMES = 5.0
"""As far as a quiet time is scaled up to a busy level; beyond, it says nothing about it."""
_BLOCKS = 6


def times_to_level_ahead(series: Sequence[float], width: int, ahead_bins: float) -> list[float]:
    """What scales each bin from the level of its time, taken over `width` bins, to the level expected ahead_bins from now.

    Where levels say little of those that follow, as in traffic that comes in bursts, it is near 1 to the same degree.
    """
    if len(series) < 2 * width or not any(series):
        return [1.0] * len(series)
    sums = [0.0, *accumulate(series)]
    overall = sums[-1] / len(series)
    steady = steadiness([(sums[end] - sums[end - width]) / width for end in range(width, len(series) + 1, width)])
    ahead = steady * _level_ahead(sums, width, ahead_bins) + (1 - steady) * overall
    return [_times(ahead, steady * _level(sums, place, width) + (1 - steady) * overall) for place in range(len(series))]


def steadiness(levels: Sequence[float]) -> float:
    """1 where each level is like the one before, 0 where one says little of the next: where more than half of their variance is between
    neighbours. Half of it where there are too few to tell.

    Source: von Neumann's ratio of the mean square successive difference to the variance, Annals of Mathematical Statistics 12, 1941.
    """
    mean = sum(levels) / len(levels)
    variance = sum((each - mean) ** 2 for each in levels) / len(levels)
    if variance <= 0.01 * mean * mean:
        return 1.0
    if len(levels) < 4:
        return 0.5
    steps = sum((after - before) ** 2 for before, after in pairwise(levels)) / (len(levels) - 1)
    return max(0.0, 1 - steps / variance)


def _level_ahead(sums: Sequence[float], width: int, ahead_bins: float) -> float:
    """The newest level, led on by the rise of the last two widths: the median of that from block to block, which a jump, that shows in two
    of five, is not. Levels that fall are not led on; capacity is better kept a while too long."""
    block = max(1, 2 * width // _BLOCKS)
    blocks = [(sums[-1 - back * block] - sums[-1 - (back + 1) * block]) / block for back in range(_BLOCKS)]
    rise = median(after - before for after, before in pairwise(blocks)) / block
    return blocks[0] + max(0.0, rise) * (block / 2 + ahead_bins)


def _level(sums: Sequence[float], place: int, width: int) -> float:
    first, last = max(0, place - width // 2), min(len(sums) - 1, place + width // 2 + 1)
    return (sums[last] - sums[first]) / (last - first)


def _times(ahead: float, level: float) -> float:
    return min(_MAX_TIMES, ahead / level) if level > 0 else 1.0


def highest_mean(series: Sequence[float], width: int) -> float:
    """Of any `width` bins in a row; 0 where there are not so many."""
    sums = [0.0, *accumulate(series)]
    return max((later - earlier for earlier, later in zip(sums, sums[width:], strict=False)), default=0.0) / width


def whole(replicas: float) -> int:
    """Enough of them, where a thousandth more is none."""
    return math.ceil(replicas - 1e-3)
