"""The results of the ladder: of one load, of one rung in one round, and of the whole ladder with its ratios."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neox_serve.loadgen.summaries import Summary
from tests.bench.engines.comparison import NotComparableError
from tests.bench.ladder.rungs import BARE, CLIENT, ITL_S, TTFT_S
from tests.bench.ladder.stamps import Lag
from tests.bench.spreads import Spread, ratios, spread
from tests.bench.workloads import Workload

MAX_LAG_S = 0.010
"""Maximum p99 token lag of a sustained load, in seconds."""
_MIN_PACE_FRACTION = 0.95


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one load on one rung."""

    workload: Workload
    """The load."""
    summary: Summary
    """Summary of the requests."""
    lag: Lag
    """Token lag."""
    cpu_s: Mapping[str, float]
    """CPU seconds of the processes by role."""

    @property
    def pace_fraction(self) -> float:
        """Rate of the tokens relative to the engine's schedule.

        If the rest of its process leaves it too little CPU time, an engine steps late. Its tokens then have little lag but are late
        nevertheless.
        """
        return 1e3 * ITL_S / self.summary.tpot_ms.median

    @property
    def carried(self) -> bool:
        """Whether the load was sustained: every token arrived, and in time."""
        return not self.summary.failed and self.lag.p99_s <= MAX_LAG_S and self.pace_fraction >= _MIN_PACE_FRACTION

    def cpu_us_per_token(self, role: str) -> float:
        """Returns the CPU microseconds per token of a role's processes."""
        return 1e6 * self.cpu_s[role] / self.summary.total_output_tokens

    def cpu_us_per_request(self, role: str) -> float:
        """Returns the CPU microseconds per request of a role's processes."""
        return 1e6 * self.cpu_s[role] / self.summary.completed

    @property
    def system_cpu_us_per_request(self) -> float:
        """CPU microseconds per request of all processes except the client."""
        return sum(self.cpu_us_per_request(role) for role in self.cpu_s if role != CLIENT)


@dataclass(frozen=True, slots=True)
class Climb:
    """The results of one rung in one round."""

    rung: str
    """Name of the rung."""
    round: int
    """Number of the round."""
    lone: Measured
    """One request at a time."""
    steady: Measured
    """64 steady streams."""
    one_token: Measured
    """Requests with one output token."""
    many: Measured
    """256 streams."""
    highest: Measured | None
    """The highest number of streams that was sustained; None if even the lowest was not."""


@dataclass(frozen=True, slots=True)
class Stall:
    """The lag of 64 streams in one round, without and with an additional client that never reads."""

    rung: str
    """Name of the rung."""
    round: int
    """Number of the round."""
    healthy: Lag
    """Lag without the stalled client."""
    beside_stalled: Lag
    """Lag with the stalled client."""


@dataclass(frozen=True, slots=True)
class FanIn:
    """The result of a very large number of slow streams."""

    rung: str
    """Name of the rung."""
    measured: Measured
    """The result."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """All results. Methods raise KeyError if a rung was not measured, and NotComparableError if requests failed."""

    rungs: tuple[str, ...]
    """Names of the rungs, from the lowest to the highest."""
    climbs: tuple[Climb, ...]
    """Results by rung and round."""
    stalls: tuple[Stall, ...]
    """Results with a stalled client by rung and round."""
    fan_ins: tuple[FanIn, ...]
    """Results of the fan-in by rung."""

    @property
    def top(self) -> str:
        """Name of the highest rung."""
        return self.rungs[-1]

    def of(self, rung: str, figure: Callable[[Climb], float]) -> Spread:
        """Returns the distribution of a value of a rung over the rounds."""
        return spread(self._by_round(rung, figure))

    def fake_over_bare_grpc(self, rung: str | None = None) -> Spread:
        """Returns the throughput of 256 streams relative to a bare gRPC server within each round. The default rung is the top."""
        return ratios(self._by_round(rung or self.top, _many_throughput), self._by_round(BARE, _many_throughput))

    def stalled_over_healthy_lag(self, rung: str | None = None) -> Spread:
        """Returns the p99 lag of 64 streams with a stalled client relative to that without it, within each round."""
        stalls = [stall for stall in self.stalls if stall.rung == (rung or self.top)]
        _require(stalls, rung or self.top)
        return ratios([stall.beside_stalled.p99_s for stall in stalls], [stall.healthy.p99_s for stall in stalls])

    def max_carried(self, rung: str | None = None) -> Spread:
        """Returns the throughput of the highest sustained number of streams, or 0 if even the lowest was not sustained."""
        return self.of(rung or self.top, lambda climb: climb.highest.summary.output_throughput if climb.highest else 0.0)

    def added_ttft_ms(self, rung: str | None = None) -> Spread:
        """Returns the TTFT p50 of single requests minus that of the engine, in ms."""
        return self.of(rung or self.top, lambda climb: climb.lone.summary.ttft_ms.median - 1e3 * TTFT_S)

    def added_p99_ttft_ms(self, rung: str | None = None) -> Spread:
        """Returns the TTFT p99 of single requests minus that of the engine, in ms."""
        return self.of(rung or self.top, lambda climb: climb.lone.summary.ttft_ms.p99 - 1e3 * TTFT_S)

    def fan_in(self, rung: str | None = None) -> Summary:
        """Returns the summary of the fan-in."""
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
    """Raises NotComparableError if a request failed or an answer has the wrong length."""
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
        raise KeyError(f"rung {rung} was not measured")
