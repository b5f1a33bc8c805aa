"""Charts of `neox-serve bench`: latency over time, its distribution, and requests in flight. They need matplotlib."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from neox_serve.loadgen.records import Record


def plot(records: Sequence[Record], title: str, path: Path) -> None:
    """Writes the charts to a file; its suffix says the format. Raises ImportError if matplotlib is missing."""
    from matplotlib.figure import Figure

    good = [one for one in records if one.error is None and one.ttft_s is not None]
    start_s = min((one.intended_s for one in records), default=0.0)
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    over_time, distribution, in_flight = figure.subplots(1, 3)
    figure.suptitle(title)
    _plot_over_time(over_time, good, start_s)
    _plot_distribution(distribution, good)
    _plot_in_flight(in_flight, records, start_s)
    figure.savefig(path)


def _plot_over_time(axes: Any, good: Sequence[Record], start_s: float) -> None:
    starts_s = [one.intended_s - start_s for one in good]
    for label, values_s in _latencies_s(good).items():
        axes.plot(starts_s, [1e3 * value_s for value_s in values_s], ".", label=label)
    axes.set(title="Latency by intended start", xlabel="s", ylabel="ms", ylim=(0, None))
    _add_legend(axes)


def _plot_distribution(axes: Any, good: Sequence[Record]) -> None:
    for label, values_s in _latencies_s(good).items():
        if values_s:
            axes.ecdf([1e3 * value_s for value_s in values_s], label=label)
    axes.set(title="Fraction of requests", xlabel="ms", xlim=(0, None))
    _add_legend(axes)


def _plot_in_flight(axes: Any, records: Sequence[Record], start_s: float) -> None:
    changes = sorted([(one.sent_s - start_s, 1) for one in records] + [(one.end_s - start_s, -1) for one in records])
    axes.step([at_s for at_s, _ in changes], list(accumulate(change for _, change in changes)), where="post")
    axes.set(title="Requests in flight", xlabel="s", ylim=(0, None))


def _latencies_s(good: Sequence[Record]) -> dict[str, list[float]]:
    return {"TTFT": [one.ttft_s for one in good if one.ttft_s is not None], "E2E": [one.e2e_s for one in good]}


def _add_legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
