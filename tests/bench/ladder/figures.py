"""The ladder's figures: one load, one rung in one round, and the whole, with the ratios that goals are about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neox_serve.loadgen.summaries import Summary
from tests.bench.engines.comparison import NotComparableError
from tests.bench.ladder.rungs import BARE, CLIENT, ITL_S, TTFT_S
from tests.bench.ladder.stamps import Lag
from tests.bench.spreads import Spread, ratios, spread
from tests.bench.workloads import Workload

MAX_LAG_S = 0.010
"""The p99 token lag beyond which a load is not carried."""
_MIN_PACE_FRACTION = 0.95


@dataclass(frozen=True, slots=True)
class Measured:
    """One load on one rung. cpu_s: seconds used by each role's processes."""

    workload: Workload
    summary: Summary
    lag: Lag
    cpu_s: Mapping[str, float]

    @property
    def pace_fraction(self) -> float:
        """How fast the tokens of a response came, as a share of the engine's schedule.

        An engine steps late where the rest of its process leaves it no time; such tokens have little lag, and are late all the same.
        """
        return 1e3 * ITL_S / self.summary.tpot_ms.median

    @property
    def carried(self) -> bool:
        """Whether every token came, in time."""
        return not self.summary.failed and self.lag.p99_s <= MAX_LAG_S and self.pace_fraction >= _MIN_PACE_FRACTION

    def cpu_us_per_token(self, role: str) -> float:
        """CPU microseconds of a role's processes."""
        return 1e6 * self.cpu_s[role] / self.summary.total_output_tokens

    def cpu_us_per_request(self, role: str) -> float:
        """As above."""
        return 1e6 * self.cpu_s[role] / self.summary.completed

    @property
    def system_cpu_us_per_request(self) -> float:
        """Of all processes but the client."""
        return sum(self.cpu_us_per_request(role) for role in self.cpu_s if role != CLIENT)


@dataclass(frozen=True, slots=True)
class Climb:
    """One rung in one round. lone: a request at a time. steady: 64 streams. one_token: requests of 1 token. many: 256 streams.

    highest: the most streams that were carried; None: not even the fewest.
    """

    rung: str
    round: int
    lone: Measured
    steady: Measured
    one_token: Measured
    many: Measured
    highest: Measured | None


@dataclass(frozen=True, slots=True)
class Stall:
    """The lag of 64 healthy streams in one round, without and with a client beside them that never reads."""

    rung: str
    round: int
    healthy: Lag
    beside_stalled: Lag


@dataclass(frozen=True, slots=True)
class FanIn:
    """Very many slow streams at once."""

    rung: str
    measured: Measured


@dataclass(frozen=True, slots=True)
class Ladder:
    """All of it. Methods raise KeyError for a rung that was not measured, NotComparableError where requests failed.

    rungs: names, lowest first.
    """

    rungs: tuple[str, ...]
    climbs: tuple[Climb, ...]
    stalls: tuple[Stall, ...]
    fan_ins: tuple[FanIn, ...]

    @property
    def top(self) -> str:
        """The highest rung."""
        return self.rungs[-1]

    def of(self, rung: str, figure: Callable[[Climb], float]) -> Spread:
        """A figure of a rung over rounds."""
        return spread(self._by_round(rung, figure))

    def fake_over_bare_grpc(self, rung: str | None = None) -> Spread:
        """tok/s of 256 streams over those of a bare gRPC server, round by round. rung: the top where none is named."""
        return ratios(self._by_round(rung or self.top, _many_throughput), self._by_round(BARE, _many_throughput))

    def stalled_over_healthy_lag(self, rung: str | None = None) -> Spread:
        """p99 lag of 64 streams beside a client that never reads over that without it, round by round."""
        stalls = [stall for stall in self.stalls if stall.rung == (rung or self.top)]
        _require(stalls, rung or self.top)
        return ratios([stall.beside_stalled.p99_s for stall in stalls], [stall.healthy.p99_s for stall in stalls])

    def max_carried(self, rung: str | None = None) -> Spread:
        """The most tok/s with the p99 lag in bounds; 0 where not even the fewest streams were carried."""
        return self.of(rung or self.top, lambda climb: climb.highest.summary.output_throughput if climb.highest else 0.0)

    def added_ttft_ms(self, rung: str | None = None) -> Spread:
        """TTFT p50 of a lone request over the engine's own."""
        return self.of(rung or self.top, lambda climb: climb.lone.summary.ttft_ms.median - 1e3 * TTFT_S)

    def added_p99_ttft_ms(self, rung: str | None = None) -> Spread:
        """TTFT p99 of a lone request over the engine's own."""
        return self.of(rung or self.top, lambda climb: climb.lone.summary.ttft_ms.p99 - 1e3 * TTFT_S)

    def fan_in(self, rung: str | None = None) -> Summary:
        """All streams of the fan-in."""
        fan_ins = [each.measured.summary for each in self.fan_ins if each.rung == (rung or self.top)]
        _require(fan_ins, rung or self.top)
        return fan_ins[0]

    def _by_round(self, rung: str, figure: Callable[[Climb], float]) -> list[float]:
        climbs = sorted((climb for climb in self.climbs if climb.rung == rung), key=lambda climb: climb.round)
        _require(climbs, rung)
        for climb in climbs:
            for measured in (climb.lone, climb.steady, climb.one_token, climb.many):
                require_complete(measured, rung)
        return [figure(climb) for climb in climbs]


def require_complete(measured: Measured, rung: str) -> None:
    """Raises NotComparableError where a request failed or has another length than asked."""
    workload, summary = measured.workload, measured.summary
    if summary.failed or summary.total_output_tokens != workload.requests * workload.output_tokens:
        raise NotComparableError(
            f"{rung}, {workload.name}, round {workload.round}: {summary.failed} failed, {summary.total_output_tokens} tokens; "
            f"{next(iter(summary.errors), '')}"
        )


def _many_throughput(climb: Climb) -> float:
    return climb.many.summary.output_throughput


def _require(found: Sequence[object], rung: str) -> None:
    if not found:
        raise KeyError(f"not measured on {rung}")
