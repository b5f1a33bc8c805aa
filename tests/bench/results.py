"""Result files and tables. Each comparison writes a JSON file to bench-results/ with machine, settings, summaries of all rounds, and
ratios."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.engines.comparison import Comparison
from tests.bench.machine import machine_facts
from tests.bench.processes import ROOT
from tests.bench.spreads import Spread, spread
from tests.bench.view import View

FOLDER = ROOT / "bench-results"
"""Folder of all results."""


def new_folder(name: str, base: Path = FOLDER) -> Path:
    """Creates a folder for logs and results, named after the current time."""
    folder = base / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{name}"
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, comparison: Comparison, settings: Mapping[str, object], busy_before: float, ratios: Mapping[str, Spread]) -> Path:
    """Writes result.json without token ids, and returns its path. `busy_before` is the CPU usage before the start, from 0 to 1."""
    content = {
        "machine": machine_facts(),
        "busy_fraction_before": busy_before,
        "settings": settings,
        "runs": [{"system": run.system, "workload": asdict(run.workload), **run.figures()} for run in comparison.runs],
        "starts": [asdict(start) for start in comparison.starts],
        "ratios": {name: asdict(value) for name, value in ratios.items()},
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
    return path


_Column = tuple[str, str, str]

_LATENCIES: tuple[_Column, ...] = (
    ("tok/s", "output_throughput", "{:,.0f}"),
    ("TTFT p50 ms", "median_ttft_ms", "{:.1f}"),
    ("p99", "p99_ttft_ms", "{:.1f}"),
    ("TPOT p50 ms", "median_tpot_ms", "{:.2f}"),
    ("p99", "p99_tpot_ms", "{:.2f}"),
    ("E2E p50 ms", "median_e2el_ms", "{:,.0f}"),
    ("p99", "p99_e2el_ms", "{:,.0f}"),
)
_CLOSED_COLUMNS: tuple[_Column, ...] = (
    *_LATENCIES,
    ("largest gap p99 ms", "p99_largest_gap_ms", "{:.0f}"),
    ("chunks/response", "chunks_per_response", "{:.1f}"),
    ("CPU s/1k tok", "system_cpu_s_per_1k_tokens", "{:.3f}"),
    ("client", "client_cpu_s_per_1k_tokens", "{:.3f}"),
    ("memory MiB", "resident_mib", "{:,.0f}"),
)
_OPEN_COLUMNS: tuple[_Column, ...] = (*_LATENCIES, ("late p50 ms", "median_late_ms", "{:.1f}"), ("p99", "p99_late_ms", "{:.1f}"))


def show(view: View, comparison: Comparison, systems: Sequence[str], workload: str) -> None:
    """Shows a table of one workload, with medians over the rounds and the fraction of responses that equal those of the first system."""
    example = comparison.of(systems[0], workload)[0].workload
    rounds = len(comparison.of(systems[0], workload))
    lengths = f"{example.prompt_tokens} tokens in, {example.output_tokens} out"
    load = f"{example.rate_rps:.1f} requests per second" if example.rate_rps else f"{example.streams} streams"
    title = f"{workload}: {load}, {example.requests} requests, {lengths}; medians of {rounds} rounds"
    columns = _OPEN_COLUMNS if example.rate_rps else _CLOSED_COLUMNS
    rows = [
        [
            system,
            *(form.format(comparison.median(system, workload, figure)) for _, figure, form in columns),
            f"{comparison.identical(system, systems[0], workload):.1%}",
            str(sum(run.summary.failed for run in comparison.of(system, workload))),
        ]
        for system in systems
    ]
    view.table(title, ["system", *(header for header, _, _ in columns), "same tokens", "failed"], rows)


def show_starts(view: View, comparison: Comparison, systems: Sequence[str]) -> None:
    """Shows a table of the times from start to first token."""
    rows = []
    for system in systems:
        found = spread(comparison.first_token_s(system))
        rows.append([system, f"{found.median:.1f}", f"{found.low:.1f}", f"{found.high:.1f}", str(found.rounds)])
    view.table("Time from start to first token in seconds", ["system", "median", "low", "high", "starts"], rows)


def report(
    folder: Path,
    comparison: Comparison,
    settings: Mapping[str, object],
    busy_before: float,
    ratios: Callable[[Comparison], Mapping[str, Spread]],
    view: View,
) -> Path:
    """Writes and shows a comparison, and returns the path of result.json.

    Raises NotComparableError if a ratio would be meaningless. The results without ratios have been written in that case.
    """
    write(folder, comparison, settings, busy_before, {})
    found = ratios(comparison)
    path = write(folder, comparison, settings, busy_before, found)
    systems = list(dict.fromkeys(run.system for run in comparison.runs))
    for workload in dict.fromkeys(run.workload.name for run in comparison.runs):
        show(view, comparison, systems, workload)
    show_starts(view, comparison, systems)
    show_ratios(view, found, path, busy_before)
    return path


def show_ratios(view: View, ratios: Mapping[str, Spread], path: Path, busy_before: float) -> None:
    """Shows a table of ratios with their spread over the rounds, the path of the results, and a warning if the machine was not idle."""
    rows = [[name, f"{value.median:.3f}", f"{value.low:.3f}", f"{value.high:.3f}", str(value.rounds)] for name, value in ratios.items()]
    view.table("Ratios within each round", ["neox-serve", "median", "low", "high", "rounds"], rows)
    view.warn_if_busy(busy_before)
    view.say(f"All results: {path}")
