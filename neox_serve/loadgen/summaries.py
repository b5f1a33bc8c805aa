"""Figures of a run, under the names that `vllm bench serve` prints; what it has no name for is named after its pattern."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from neox_serve.loadgen.records import Record


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. Throughputs are per second; latencies that no request had are 0. errors: the first few different ones.

    largest_gap: the longest silence within a response. system_cpu_s_per_1k_tokens: CPU of every process of the system under test;
    client_cpu_s_per_1k_tokens: of the load generator, 0 where the system runs within it.
    """

    completed: int
    failed: int
    duration: float
    max_concurrency: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    output_throughput: float
    mean_ttft_ms: float
    median_ttft_ms: float
    std_ttft_ms: float
    p99_ttft_ms: float
    mean_tpot_ms: float
    median_tpot_ms: float
    p99_tpot_ms: float
    mean_e2el_ms: float
    median_e2el_ms: float
    p99_e2el_ms: float
    median_largest_gap_ms: float
    p99_largest_gap_ms: float
    chunks_per_response: float
    system_cpu_s_per_1k_tokens: float
    client_cpu_s_per_1k_tokens: float
    errors: tuple[str, ...] = ()


def percentile(values: Iterable[float], fraction: float) -> float:
    """The value below which this fraction (0 to 1) lies, interpolated between neighbours; 0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def summarize(records: Sequence[Record], *, streams: int, system_cpu_s: float = 0.0, client_cpu_s: float = 0.0) -> Summary:
    """The figures of a run. Failed requests count in `failed` and in the duration, and nowhere else."""
    good = [one for one in records if one.error is None]
    duration_s = max((one.end_s for one in records), default=0.0) - min((one.intended_s for one in records), default=0.0)
    output_tokens = sum(len(one.token_ids) for one in good)
    ttft_ms = [1e3 * one.ttft_s for one in good if one.ttft_s is not None]
    tpot_ms = [1e3 * one.tpot_s for one in good if one.tpot_s is not None]
    e2el_ms = [1e3 * one.e2e_s for one in good]
    gaps_ms = [1e3 * one.largest_gap_s for one in good]
    return Summary(
        completed=len(good),
        failed=len(records) - len(good),
        duration=duration_s,
        max_concurrency=streams,
        total_input_tokens=sum(one.prompt_tokens for one in good),
        total_output_tokens=output_tokens,
        request_throughput=_per(len(good), duration_s),
        output_throughput=_per(output_tokens, duration_s),
        mean_ttft_ms=_mean(ttft_ms),
        median_ttft_ms=percentile(ttft_ms, 0.5),
        std_ttft_ms=pstdev(ttft_ms) if ttft_ms else 0.0,
        p99_ttft_ms=percentile(ttft_ms, 0.99),
        mean_tpot_ms=_mean(tpot_ms),
        median_tpot_ms=percentile(tpot_ms, 0.5),
        p99_tpot_ms=percentile(tpot_ms, 0.99),
        mean_e2el_ms=_mean(e2el_ms),
        median_e2el_ms=percentile(e2el_ms, 0.5),
        p99_e2el_ms=percentile(e2el_ms, 0.99),
        median_largest_gap_ms=percentile(gaps_ms, 0.5),
        p99_largest_gap_ms=percentile(gaps_ms, 0.99),
        chunks_per_response=_mean([one.chunks for one in good]),
        system_cpu_s_per_1k_tokens=_per(1e3 * system_cpu_s, output_tokens),
        client_cpu_s_per_1k_tokens=_per(1e3 * client_cpu_s, output_tokens),
        errors=tuple(sorted({one.error for one in records if one.error is not None}))[:5],
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and range. Raises ValueError where there is no value."""
    if not values:
        raise ValueError("no round was measured")
    return Spread(median(values), min(values), max(values), len(values))


def ratios(of: Sequence[float], over: Sequence[float]) -> Spread:
    """Ratio within each round, then over rounds: what drifts from round to round cancels out. Raises ValueError where sizes differ."""
    return spread([one / other for one, other in zip(of, over, strict=True)])


def differences(of: Sequence[float], minus: Sequence[float]) -> Spread:
    """Difference within each round, then over rounds. Raises ValueError where sizes differ."""
    return spread([one - other for one, other in zip(of, minus, strict=True)])


def identical_fraction(ours: Sequence[Record], theirs: Sequence[Record]) -> float:
    """Share of requests to which both systems answered with the same tokens. Raises ValueError where sizes differ."""
    same = [one.token_ids == other.token_ids for one, other in zip(ours, theirs, strict=True)]
    return _mean([float(each) for each in same])


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _per(amount: float, over: float) -> float:
    return amount / over if over > 0 else 0.0
