"""The picture of a comparison on real engines, drawn from its result.json."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Runs = Sequence[Mapping[str, Any]]
"""Runs of a result.json."""

_MANY_STREAMS = 64


def write(result: Path) -> Path:
    """Writes engines.png next to a result.json and returns its path.

    Raises OSError if the file cannot be read, and KeyError if it belongs to another benchmark.
    """
    content = json.loads(result.read_text(encoding="utf-8"))
    path = result.with_name("engines.png")
    draw(content["runs"], content["starts"], path)
    return path


def draw(runs: Runs, starts: Runs, path: Path) -> None:
    """Draws medians over the rounds: throughput, TPOT and TTFT by streams, E2E latency of open loops, CPU time, memory, and start-up
    time."""
    systems = list(dict.fromkeys(run["system"] for run in runs))
    closed = [run for run in runs if run["workload"]["rate_rps"] is None]
    opened = [run for run in runs if run["workload"]["rate_rps"] is not None]
    many = [run for run in closed if run["workload"]["streams"] == _MANY_STREAMS]
    figure = Figure(figsize=(17, 9), layout="constrained")
    FigureCanvasAgg(figure)
    ((throughput, tpot, ttft), (e2e, cost, start)) = figure.subplots(2, 3)
    _lines(throughput, systems, closed, _streams, "output_throughput", "tok/s", "Closed loop: tokens per second")
    _lines(tpot, systems, closed, _streams, "median_tpot_ms", "ms", "Closed loop: TPOT p50")
    _lines(ttft, systems, closed, _streams, "median_ttft_ms", "ms", "Closed loop: TTFT p50")
    ttft.set_yscale("log")
    _lines(e2e, systems, opened, lambda run: run["workload"]["rate_rps"], "p99_e2el_ms", "ms", "Open loop: E2E p99")
    e2e.set_xlabel("requests per second")
    e2e.set_yscale("log")
    _bars(cost, systems, {"CPU s / 1k tok": _medians(systems, many, "system_cpu_s_per_1k_tokens")}, "CPU time at 64 streams")
    _bars(
        start,
        systems,
        {
            "start to first token, s": _medians(systems, starts, "first_token_s"),
            "memory, GiB": _gib(_medians(systems, many, "resident_mib")),
        },
        "Start and memory",
    )
    throughput.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def _streams(run: Mapping[str, Any]) -> float:
    return float(run["workload"]["streams"])


def _lines(
    axes: Axes, systems: Iterable[str], runs: Runs, place: Callable[[Mapping[str, Any]], float], name: str, unit: str, title: str
) -> None:
    for system in systems:
        by_place: dict[float, list[float]] = {}
        for run in runs:
            if run["system"] == system:
                by_place.setdefault(place(run), []).append(run[name])
        places = sorted(by_place)
        axes.plot(places, [median(by_place[each]) for each in places], marker="o", label=system)
    axes.set_xlabel("streams")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(alpha=0.3)


def _bars(axes: Axes, systems: Sequence[str], figures: Mapping[str, Sequence[float]], title: str) -> None:
    height = 0.8 / len(figures)
    for number, (label, values) in enumerate(figures.items()):
        bars = axes.barh([place + number * height for place in range(len(systems))], values, height, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize="small")
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(systems))], systems)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title)
    axes.legend(fontsize="small")


def _medians(systems: Iterable[str], runs: Runs, name: str) -> list[float]:
    return [median([run[name] for run in runs if run["system"] == system] or [0.0]) for system in systems]


def _gib(values_mib: Iterable[float]) -> list[float]:
    return [value / 1024 for value in values_mib]
