"""How well what is promised is kept lately: from the first-token and per-token times of answers."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from autoscaling.signals import Targets

SPAN_S = 30.0


class Attained(NamedTuple):
    """Of answers lately: those within the targets, and the mean times; None where there were none. The names are those of PoolSignals."""

    ttft_attainment_fraction: float | None = None
    ttft_mean_s: float | None = None
    tpot_attainment_fraction: float | None = None
    tpot_mean_s: float | None = None


class _Sums(NamedTuple):
    """Of one report: how many, how many within the target, and the sum of their times."""

    at_s: float
    ttfts: int
    ttfts_met: int
    ttft_s: float
    tpots: int
    tpots_met: int
    tpot_s: float


class Attainment:
    """Of the last span_s. What is older falls out by whole reports."""

    def __init__(self, targets: Targets, span_s: float = SPAN_S) -> None:
        self._targets = targets
        self._span_s = span_s
        self._reports: deque[_Sums] = deque()

    def report(self, ttfts_s: Sequence[float], tpots_s: Sequence[float], now_s: float) -> Attained:
        """Takes what was measured since the report before, and says how the targets are kept now."""
        ttfts_met = sum(one <= self._targets.ttft_s for one in ttfts_s)
        tpots_met = sum(one <= self._targets.tpot_s for one in tpots_s)
        self._reports.append(_Sums(now_s, len(ttfts_s), ttfts_met, sum(ttfts_s), len(tpots_s), tpots_met, sum(tpots_s)))
        while self._reports[0].at_s <= now_s - self._span_s:
            self._reports.popleft()
        _, ttfts, ttfts_met, ttft_s, tpots, tpots_met, tpot_s = (sum(column) for column in zip(*self._reports, strict=True))
        return Attained(*_of(ttfts, ttfts_met, ttft_s), *_of(tpots, tpots_met, tpot_s))


def _of(count: float, met: float, seconds: float) -> tuple[float | None, float | None]:
    return (met / count, seconds / count) if count else (None, None)
