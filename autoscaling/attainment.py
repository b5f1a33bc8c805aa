"""Recent attainment of the latency targets, computed from the TTFT and TPOT of recent requests."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from autoscaling.signals import Targets

WINDOW_S = 30.0
"""Default length of the sliding window, in seconds."""


class Attained(NamedTuple):
    """Attainment and mean latencies over the window. The field names equal those of `PoolSignals`."""

    ttft_attainment_fraction: float | None = None
    """Fraction of first tokens within the TTFT target; None if there were none."""
    ttft_mean_s: float | None = None
    """Mean time to first token in seconds; None if there were none."""
    tpot_attainment_fraction: float | None = None
    """Fraction of completed requests within the TPOT target; None if there were none."""
    tpot_mean_s: float | None = None
    """Mean time per output token in seconds; None if no request completed."""


class _ReportSums(NamedTuple):
    at_s: float
    """Time of the report."""
    ttft_count: int
    """Number of first tokens."""
    ttft_met_count: int
    """Number of first tokens within the target."""
    ttft_sum_s: float
    """Sum of the times to first token."""
    tpot_count: int
    """Number of completed requests."""
    tpot_met_count: int
    """Number of completed requests within the TPOT target."""
    tpot_sum_s: float
    """Sum of the times per output token."""


class Attainment:
    """Aggregates latencies over the last `window_s` seconds. Old measurements expire by whole reports."""

    def __init__(self, targets: Targets, window_s: float = WINDOW_S) -> None:
        self._targets = targets
        self._window_s = window_s
        self._reports: deque[_ReportSums] = deque()

    def report(self, ttfts_s: Sequence[float], tpots_s: Sequence[float], now_s: float) -> Attained:
        """Adds the latencies measured since the previous report and returns the attainment over the window."""
        ttft_met_count = sum(ttft_s <= self._targets.ttft_s for ttft_s in ttfts_s)
        tpot_met_count = sum(tpot_s <= self._targets.tpot_s for tpot_s in tpots_s)
        self._reports.append(_ReportSums(now_s, len(ttfts_s), ttft_met_count, sum(ttfts_s), len(tpots_s), tpot_met_count, sum(tpots_s)))
        while self._reports[0].at_s <= now_s - self._window_s:
            self._reports.popleft()
        _, ttfts, ttfts_met, ttft_s, tpots, tpots_met, tpot_s = (sum(column) for column in zip(*self._reports, strict=True))
        return Attained(*_fraction_and_mean(ttfts, ttfts_met, ttft_s), *_fraction_and_mean(tpots, tpots_met, tpot_s))


def _fraction_and_mean(count: float, met_count: float, sum_s: float) -> tuple[float | None, float | None]:
    return (met_count / count, sum_s / count) if count else (None, None)
