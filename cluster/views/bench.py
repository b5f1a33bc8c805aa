"""The results of `neox-serve bench` as tables and as JSON."""

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.bench.endpoints import Endpoint
from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.summaries import Summary

_LATE_MS = 10.0
_BUSY_FRACTION = 0.9
_LATENCIES = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("E2E", "e2el_ms"), ("largest gap", "largest_gap_ms"), ("sent late by", "late_ms"))


def bench_view(endpoint: Endpoint, load: Load, summary: Summary, notes: Iterable[str]) -> RenderableType:
    """Headline, throughput, latencies and notes."""
    headline = Text(f"{endpoint.model} on {endpoint.address}: {load.workload.name}, {describe(load)}", style="bold")
    warnings = [Text(note, style="yellow") for note in notes]
    return Group(headline, _totals(summary), Text(), _latencies(summary, open_loop=not isinstance(load.arrivals, ClosedLoop)), *warnings)


def bench_json(endpoint: Endpoint, load: Load, summary: Summary, unfinished: int) -> dict[str, object]:
    """All results, with the names that `vllm bench serve` uses in its result file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": endpoint.backend,
        "model_id": endpoint.model,
        "num_prompts": summary.completed + summary.failed + unfinished,
        "request_rate": load.arrivals.rate_rps if isinstance(load.arrivals, OpenLoop) else "inf",
        "workload": load.workload.name,
        "arrivals": describe(load),
        **summary.figures(),
        "unfinished": unfinished,
    }


def describe(load: Load) -> str:
    """A description of the arrivals."""
    arrivals = load.arrivals
    if isinstance(arrivals, ClosedLoop):
        return f"closed loop of {arrivals.streams} streams"
    capped = f", at most {load.max_in_flight} in flight" if load.max_in_flight else ""
    if isinstance(arrivals, OpenLoop):
        return f"open loop at {arrivals.rate_rps:g} requests/s, gaps with CV {arrivals.cv:g}{capped}"
    return f"open loop at {arrivals.speed:g} x the recorded speed{capped}"


def reading_notes(load: Load, summary: Summary, unfinished: int, client_cpu_s: float) -> list[str]:
    """Notes on what limits the figures."""
    notes = []
    if unfinished:
        notes.append(f"Interrupted: {unfinished:,} requests in flight were cut off and are not counted.")
    if summary.late_ms.p99 >= _LATE_MS and not isinstance(load.arrivals, ClosedLoop):
        cause = (
            f"at most {load.max_in_flight} requests were allowed in flight"
            if load.max_in_flight
            else "the load generator could not keep up"
        )
        notes.append(
            f"Requests were sent late (p99 {summary.late_ms.p99:,.0f} ms): {cause}. Latencies are measured from the intended start."
        )
    if summary.duration > 0 and client_cpu_s / summary.duration >= _BUSY_FRACTION:
        notes.append(f"The load generator used {client_cpu_s / summary.duration:.2f} of a CPU core; the figures may be limited by it.")
    return notes


def _totals(summary: Summary) -> Table:
    offered, goodput = summary.offered_request_rate, summary.request_goodput
    rows = [
        ("requests", f"{summary.completed:,} completed, {summary.failed:,} failed, in {summary.duration:,.1f} s"),
        ("tokens", f"{summary.total_input_tokens:,} in, {summary.total_output_tokens:,} out"),
        ("requests/s", f"{summary.request_throughput:,.2f}" + ("" if offered is None else f" of {offered:,.2f} offered")),
        ("output tok/s", f"{summary.output_throughput:,.1f}"),
        ("total tok/s", f"{summary.total_token_throughput:,.1f}"),
    ]
    if goodput is not None:
        rows.append(("goodput, requests/s", f"{goodput:,.2f}"))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _latencies(summary: Summary, *, open_loop: bool) -> Table:
    table = Table("ms", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("mean", "p50", "p90", "p99"):
        table.add_column(column, justify="right")
    for label, name in _LATENCIES if open_loop else _LATENCIES[:-1]:
        values = getattr(summary, name)
        table.add_row(label, *(f"{value:,.1f}" for value in (values.mean, values.median, values.p90, values.p99)))
    return table
