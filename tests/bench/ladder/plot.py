"""The picture of the ladder: lag by rung, and CPU time per token by process."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.bench.ladder.figures import Ladder
from tests.bench.ladder.report import cpu_us_per_token, rung_figures
from tests.bench.ladder.rungs import ROLES
from tests.bench.spreads import Spread

_BAR_WIDTH = 0.38


def write(folder: Path, ladder: Ladder) -> Path:
    """Writes ladder.png to the folder and returns its path."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    lag_axes, cpu_axes = figure.subplots(1, 2)
    _plot_lag(lag_axes, ladder)
    _plot_cpu(cpu_axes, ladder)
    path = folder / "ladder.png"
    figure.savefig(path, dpi=120)
    return path


def _plot_lag(axes: Axes, ladder: Ladder) -> None:
    figures = [rung_figures(ladder, rung) for rung in ladder.rungs]
    for number, name in enumerate(("lag p50 ms", "lag p99 ms")):
        spreads = [of_rung[name] for of_rung in figures]
        places = [place + (number - 0.5) * _BAR_WIDTH for place in range(len(spreads))]
        axes.bar(places, [each.median for each in spreads], _BAR_WIDTH, yerr=_errors(spreads), capsize=3, label=name.removesuffix(" ms"))
    axes.set_xticks(range(len(ladder.rungs)), ladder.rungs)
    axes.set_ylabel("ms")
    axes.set_title("Token lag, 64 streams of 50 tokens per second")
    axes.legend()


def _plot_cpu(axes: Axes, ladder: Ladder) -> None:
    by_rung = [cpu_us_per_token(ladder, rung) for rung in ladder.rungs]
    bottoms = [0.0] * len(by_rung)
    for role in ROLES:
        heights = [of_rung[role].median for of_rung in by_rung]
        axes.bar(ladder.rungs, heights, bottom=bottoms, label=role)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_ylabel("CPU microseconds a token")
    axes.set_title("CPU a token, by process")
    axes.set_ylim(top=1.25 * max(bottoms))
    axes.legend(ncols=3, loc="upper left")


def _errors(spreads: list[Spread]) -> list[list[float]]:
    """Down to the lowest and up to the highest round."""
    return [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
