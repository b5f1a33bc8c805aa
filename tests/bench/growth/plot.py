"""The picture of the curves, drawn from a result.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.bench.growth.points import GATEWAYS, PROMPT, REPLICAS, STREAMS

Points = Sequence[Mapping[str, Any]]
"""Points of a result.json."""


def write(result: Path) -> Path:
    """Writes growth.png next to a result.json and returns its path.

    Raises OSError if the file cannot be read, and KeyError if it belongs to another benchmark.
    """
    content = json.loads(result.read_text(encoding="utf-8"))
    points, router = content["points"], content["router"]
    figure = Figure(figsize=(16, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    ((throughput, cpu, wide), (ttft, request_cpu, decisions)) = figure.subplots(2, 3)
    _line(throughput, points, (STREAMS,), "output_throughput", "tok/s", "Fake engine, 50 tok/s per stream: throughput")
    _line(cpu, points, (STREAMS,), "system_cpu_us_per_token", "microseconds per token", "Fake engine: CPU time of the system")
    _line(wide, points, (GATEWAYS, REPLICAS), "system_cpu_us_per_token", "microseconds per token", "Fake engine, 256 streams: CPU time")
    _line(ttft, points, (PROMPT,), "median_ttft_ms", "ms", "One stream: TTFT p50")
    _line(request_cpu, points, (PROMPT,), "system_cpu_ms_per_request", "ms per request", "One stream, 8 output tokens: CPU time")
    _router(decisions, router)
    path = result.with_name("growth.png")
    figure.savefig(path, dpi=100)
    return path


def _line(axes: Axes, points: Points, over: Sequence[str], name: str, unit: str, title: str) -> None:
    """Draws a line for each system, or for each curve if there are several: the median over the rounds with its range."""
    lines: dict[str, dict[int, list[float]]] = {}
    for point in points:
        if point["over"] in over:
            label = point["over"] if len(over) > 1 else point["system"]
            lines.setdefault(label, {}).setdefault(point["at"], []).append(point[name])
    for label, by_place in lines.items():
        places = sorted(by_place)
        axes.plot(places, [median(by_place[place]) for place in places], marker="o", label=label)
        axes.fill_between(places, [min(by_place[place]) for place in places], [max(by_place[place]) for place in places], alpha=0.2)
    axes.set_xlabel(" or ".join(over))
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _router(axes: Axes, router: Points) -> None:
    sizes = [each["replicas"] for each in router]
    axes.plot(sizes, [each["decisions_per_s"] for each in router], marker="o", color="tab:blue")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("decisions per second", color="tab:blue")
    axes.set_xlabel("replicas")
    late = axes.twinx()
    late.plot(sizes, [1e6 * each["p99_s"] for each in router], marker="s", color="tab:orange")
    late.set_ylim(bottom=0)
    late.set_ylabel("p99, microseconds", color="tab:orange")
    axes.set_title("The router's core on one core")
