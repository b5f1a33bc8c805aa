"""Figures of a run, with the names that `vllm bench serve` prints. Figures that it lacks are named in the same pattern."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean, pstdev

from neox_serve.loadgen.records import Record

_ERRORS_KEPT = 5
"""Number of different error messages in a summary."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits on a request's latencies, measured from its intended start. None sets no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def met(self, one: Record) -> bool:
        """Returns whether a successful request stayed within the limits. A request without TPOT meets any limit on it."""
        kept = [one.tpot_s is None or _within(one.tpot_s, self.tpot_ms), _within(one.e2e_s, self.e2el_ms)]
        return all(kept) and (self.ttft_ms is None or (one.ttft_s is not None and _within(one.ttft_s, self.ttft_ms)))


@dataclass(frozen=True, slots=True)
class Distribution:
    """Statistics of a latency over requests; all zero if no request had it."""

    mean: float
    median: float
    std: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run. Rates are per second."""

    completed: int
    failed: int
    duration: float
    """Seconds from the first intended start to the last end."""
    max_concurrency: int | None
    """Number of streams of a closed loop, or limit on requests in flight of an open one; None without a limit."""
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    offered_request_rate: float | None
    """Rate of the intended starts; None for closed loops."""
    request_goodput: float | None
    """Rate of requests within their SLO; None without an SLO."""
    output_throughput: float
    total_token_throughput: float
    ttft_ms: Distribution
    tpot_ms: Distribution
    e2el_ms: Distribution
    largest_gap_ms: Distribution
    """Longest silence within a response."""
    late_ms: Distribution
    """Delay from the intended to the real start of a request."""
    chunks_per_response: float
    system_cpu_s_per_1k_tokens: float | None = None
    """CPU time of all processes of the system under test; None if not measured."""
    client_cpu_s_per_1k_tokens: float | None = None
    """CPU time of the load generator, 0 if the system runs within it; None if not measured."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """The most frequent error messages and how often each occurred."""

    def figures(self) -> dict[str, object]:
        """Returns all figures in one flat dictionary, named like those of `vllm bench serve`: mean_ttft_ms, p99_ttft_ms and so on."""
        flat: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Distribution):
                flat |= {f"{statistic.name}_{each.name}": getattr(value, statistic.name) for statistic in fields(value)}
            else:
                flat[each.name] = value
        return flat


def percentile(values: Iterable[float], fraction: float) -> float:
    """Returns the value below which a fraction (0 to 1) of the values lies, interpolated linearly; 0 if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def summarize(
    records: Sequence[Record],
    *,
    max_concurrency: int | None = None,
    open_loop: bool = False,
    slo: Slo | None = None,
    system_cpu_s: float | None = None,
    client_cpu_s: float | None = None,
) -> Summary:
    """Computes the figures of a run. Failed requests count only in `failed`, the duration, the offered rate and the lateness."""
    good = [one for one in records if one.error is None]
    duration_s = max((one.end_s for one in records), default=0.0) - min((one.intended_s for one in records), default=0.0)
    input_tokens = sum(one.prompt_tokens for one in good)
    output_tokens = sum(len(one.token_ids) for one in good)
    return Summary(
        completed=len(good),
        failed=len(records) - len(good),
        duration=duration_s,
        max_concurrency=max_concurrency,
        total_input_tokens=input_tokens,
        total_output_tokens=output_tokens,
        request_throughput=_per(len(good), duration_s),
        offered_request_rate=_offered_rate_rps(records) if open_loop else None,
        request_goodput=None if slo is None else _per(sum(map(slo.met, good)), duration_s),
        output_throughput=_per(output_tokens, duration_s),
        total_token_throughput=_per(input_tokens + output_tokens, duration_s),
        ttft_ms=_distribution_ms(one.ttft_s for one in good),
        tpot_ms=_distribution_ms(one.tpot_s for one in good),
        e2el_ms=_distribution_ms(one.e2e_s for one in good),
        largest_gap_ms=_distribution_ms(one.largest_gap_s for one in good),
        late_ms=_distribution_ms(one.late_s for one in records),
        chunks_per_response=_mean([one.chunks for one in good]),
        system_cpu_s_per_1k_tokens=None if system_cpu_s is None else _per(1e3 * system_cpu_s, output_tokens),
        client_cpu_s_per_1k_tokens=None if client_cpu_s is None else _per(1e3 * client_cpu_s, output_tokens),
        errors=dict(Counter(one.error for one in records if one.error is not None).most_common(_ERRORS_KEPT)),
    )


def _distribution_ms(values_s: Iterable[float | None]) -> Distribution:
    values_ms = [1e3 * value_s for value_s in values_s if value_s is not None]
    return Distribution(
        mean=_mean(values_ms),
        median=percentile(values_ms, 0.5),
        std=pstdev(values_ms) if values_ms else 0.0,
        p90=percentile(values_ms, 0.9),
        p99=percentile(values_ms, 0.99),
    )


def _offered_rate_rps(records: Sequence[Record]) -> float:
    """Returns the mean rate of the intended starts; n starts have n - 1 gaps."""
    starts_s = [one.intended_s for one in records]
    return _per(len(starts_s) - 1, max(starts_s) - min(starts_s)) if starts_s else 0.0


def _within(value_s: float, limit_ms: float | None) -> bool:
    return limit_ms is None or 1e3 * value_s <= limit_ms


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _per(amount: float, over: float) -> float:
    return amount / over if over > 0 else 0.0
