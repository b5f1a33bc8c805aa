"""Forecast of the demand level: scale factors that turn recorded demand into demand at the level that is expected.

All series hold means over bins of equal width, oldest first.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import sub
from statistics import median

_MAX_FACTOR = 5.0
"""Maximum factor by which a quiet period is scaled up. A period that is more than five times quieter says nothing about the expected
level."""
_BLOCKS = 6
"""Number of blocks in which the recent rise is measured."""


def factors_to_expected_level(series: Sequence[float], width: int, ahead_bins: float) -> list[float]:
    """Returns for each bin the factor from the level at its time to the level expected `ahead_bins` bins from now.

    A level is a mean over `width` bins. If levels do not predict the following levels, as in bursty traffic, the factors approach 1.
    """
    if len(series) < 2 * width or not any(series):
        return [1.0] * len(series)
    sums = [0.0, *accumulate(series)]
    overall = sums[-1] / len(series)
    steady = steadiness([(sums[end] - sums[end - width]) / width for end in range(width, len(series) + 1, width)])
    expected = steady * _expected_level(sums, width, ahead_bins) + (1 - steady) * overall
    unsteady = (1 - steady) * overall
    levels = [steady * mean + unsteady for mean in _centered_means(sums, width)]
    # Equal to min(_MAX_FACTOR, expected / level), without a call for each bin.
    return [(factor if (factor := expected / level) < _MAX_FACTOR else _MAX_FACTOR) if level > 0 else 1.0 for level in levels]


def _centered_means(sums: Sequence[float], width: int) -> list[float]:
    """Returns for each bin the mean over about `width` bins around it, fewer at both ends. `sums` are cumulative sums from 0 on."""
    half, count = width // 2, len(sums) - 1
    full = 2 * half + 1
    middle = [(last - first) / full for first, last in zip(sums, sums[full:], strict=False)]
    begin = [(sums[last] - sums[0]) / last for last in range(half + 1, full)]
    end = [(sums[count] - sums[first]) / (count - first) for first in range(count - full + 1, count - half)]
    return begin + middle + end


def steadiness(levels: Sequence[float]) -> float:
    """Returns how well each level predicts the next, from 0 to 1.

    The result is 1 if each level resembles the previous one, and 0 if the mean square difference between neighbours is at least the
    variance (for independent levels, it is twice the variance). It is 0.5 if there are too few levels to tell.
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


def _expected_level(sums: Sequence[float], width: int, ahead_bins: float) -> float:
    """Returns the newest level, extrapolated by the rise over the last two widths.

    The rise is the median of the differences between consecutive blocks. A jump changes at most two of the five differences and therefore
    does not count as a rise. Falling levels are not extrapolated, because keeping capacity a little too long is the safer error.
    """
    block = max(1, 2 * width // _BLOCKS)
    blocks = [(sums[-1 - back * block] - sums[-1 - (back + 1) * block]) / block for back in range(_BLOCKS)]
    rise = median(after - before for after, before in pairwise(blocks)) / block
    return blocks[0] + max(0.0, rise) * (block / 2 + ahead_bins)


def highest_mean(series: Sequence[float], width: int) -> float:
    """Returns the highest mean of any `width` consecutive bins, or 0 if the series is shorter than that."""
    sums = [0.0, *accumulate(series)]
    return max(map(sub, sums[width:], sums), default=0.0) / width


def round_up(replicas: float) -> int:
    """Returns the replica count rounded up, ignoring an excess of less than a thousandth."""
    return math.ceil(replicas - 1e-3)
