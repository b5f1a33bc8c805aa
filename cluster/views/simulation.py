"""The results of `neox-serve simulate` as a table, as JSON, and as an HTML page with charts. Charts need matplotlib."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from autoscaling.signals import Targets
from autoscaling.simulator.calibration import Fit
from autoscaling.simulator.compared_policies import COMPARED_POLICIES, ORACLE
from autoscaling.simulator.comparison import Curve, Point, cheapest

_COLUMNS = (
    "policy",
    "parameter",
    "attainment",
    "GPU-hours",
    "over oracle",
    "TTFT p50 / p99 s",
    "TPOT p50 / p99 ms",
    "actions",
    "reversals",
)


def chosen(curves: Mapping[str, Curve], targets: Targets) -> dict[str, Point]:
    """The cheapest point of each policy that meets the targets or, if none does, its point with the highest attainment."""
    return {
        name: cheapest(curve.points, targets.attainment_fraction) or max(curve.points, key=lambda point: point.attainment_fraction)
        for name, curve in curves.items()
    }


def rows(curves: Mapping[str, Curve], targets: Targets) -> list[dict[str, Any]]:
    """The figures of the chosen points. Keys have units."""
    points = chosen(curves, targets)
    oracle = points.get(ORACLE)
    found = []
    for name, point in points.items():
        outcome = point.result
        found.append(
            {
                "policy": name,
                "knob": COMPARED_POLICIES[name].knob,
                "knob_value": point.knob,
                "attainment_fraction": point.attainment_fraction,
                "meets_targets": point.attainment_fraction >= targets.attainment_fraction,
                "gpu_hours": point.gpu_hours,
                "gpu_hours_over_oracle": point.gpu_hours / oracle.gpu_hours if oracle and oracle.gpu_hours else None,
                "ttft_p50_s": _or_none(outcome.quantile_s(outcome.ttft_s, 0.5)),
                "ttft_p99_s": _or_none(outcome.quantile_s(outcome.ttft_s, 0.99)),
                "tpot_p50_s": _or_none(outcome.quantile_s(outcome.tpot_s, 0.5)),
                "tpot_p99_s": _or_none(outcome.quantile_s(outcome.tpot_s, 0.99)),
                "requests": outcome.requests,
                "refused": outcome.refused,
                "actions": len(outcome.actions),
                "reversals": outcome.reversals(2 * outcome.startup_s),
            }
        )
    return found


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def figures(curves: Mapping[str, Curve], targets: Targets) -> dict[str, Any]:
    """All results for JSON: the chosen points, the curves and the scaling actions."""
    points = {
        name: [
            {"knob_value": point.knob, "attainment_fraction": point.attainment_fraction, "gpu_hours": point.gpu_hours}
            for point in curve.points
        ]
        for name, curve in curves.items()
    }
    actions = {
        name: [
            {"at_s": action.at_s, "before": action.before, "after": action.after, "reason": action.reason}
            for action in point.result.actions
        ]
        for name, point in chosen(curves, targets).items()
    }
    return {"policies": rows(curves, targets), "curves": points, "actions": actions}


def table(curves: Mapping[str, Curve], targets: Targets) -> Table:
    """A table for the terminal."""
    targets_text = f"{targets.attainment_fraction:.2%} within TTFT {targets.ttft_s:g} s and TPOT {1e3 * targets.tpot_s:g} ms"
    view = Table(*_COLUMNS, title=f"Cheapest setting of each policy that meets the targets: {targets_text}")
    for row in rows(curves, targets):
        view.add_row(*_cells(row))
    return view


def _cells(row: Mapping[str, Any]) -> list[str]:
    over = row["gpu_hours_over_oracle"]
    return [
        row["policy"],
        f"{row['knob']} {row['knob_value']:.3g}",
        f"{row['attainment_fraction']:.2%}" + ("" if row["meets_targets"] else " (missed)"),
        f"{row['gpu_hours']:.2f}",
        "" if over is None else f"{over:.2f}",
        _pair(row["ttft_p50_s"], row["ttft_p99_s"], 1.0),
        _pair(row["tpot_p50_s"], row["tpot_p99_s"], 1e3),
        str(row["actions"]),
        str(row["reversals"]),
    ]


def _pair(first: float | None, second: float | None, unit: float) -> str:
    return " / ".join("-" if value is None else f"{unit * value:.3g}" for value in (first, second))


def fit_lines(fits: Mapping[int, Fit]) -> list[str]:
    """How well step times fit the tables, one line per tensor-parallel size."""
    return [
        f"TP={size}: {found.rows} rows fitted, error {found.error_fraction:.1%} mean, {found.max_error_fraction:.1%} at most; "
        f"held out by shape {found.held_out_error_fraction:.1%} mean, {found.held_out_max_error_fraction:.1%} at most"
        for size, found in fits.items()
    ]


def write_report(folder: Path, title: str, notes: Sequence[str], curves: Mapping[str, Curve], targets: Targets) -> Path:
    """Writes a self-contained report.html and its charts as PNG files. Raises ImportError if matplotlib is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    points = chosen(curves, targets)
    pictures = {
        "attainment.png": ("Attainment and cost", _draw_curves(curves, targets)),
        "replicas.png": ("Replicas and load", _draw_replicas(points)),
        "latencies.png": ("Latencies", _draw_latencies(points, targets)),
    }
    for name, (_, content) in pictures.items():
        (folder / name).write_bytes(content)
    path = folder / "report.html"
    path.write_text(_page(title, notes, pictures, curves, targets), encoding="utf-8")
    return path


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}}
table{{border-collapse:collapse;font-size:13px}}th,td{{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:left}}
img{{max-width:100%}}details{{margin:.5em 0}}td:first-child{{white-space:nowrap}}</style></head>
<body><h1>{title}</h1>{notes}<h2>Cheapest setting of each policy that meets the targets</h2>{table}{pictures}
<h2>Scaling actions</h2>{actions}</body></html>
"""


def _page(
    title: str, notes: Sequence[str], pictures: Mapping[str, tuple[str, bytes]], curves: Mapping[str, Curve], targets: Targets
) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in rows(curves, targets))
    images = "".join(
        f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        for name, content in pictures.values()
    )
    return _PAGE.format(
        title=html.escape(title),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in notes),
        table=f"<table><tr>{head}</tr>{body}</table>",
        pictures=images,
        actions="".join(_actions(name, point) for name, point in chosen(curves, targets).items()),
    )


def _actions(name: str, point: Point) -> str:
    cells = ((f"{action.at_s:.0f} s", f"{action.before} to {action.after}", action.reason) for action in point.result.actions)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    return f"<details><summary>{html.escape(name)}: {len(point.result.actions)}</summary><table>{lines}</table></details>"


def _draw_curves(curves: Mapping[str, Curve], targets: Targets) -> bytes:
    figure = _figure(9, 5)
    axes = figure.subplots()
    for name, curve in curves.items():
        points = sorted(curve.points, key=lambda point: point.gpu_hours)
        missed = [max(1e-5, 1 - point.attainment_fraction) for point in points]
        axes.plot([point.gpu_hours for point in points], missed, "o-", ms=4, label=name, lw=2.5 if name == next(iter(curves)) else 1)
    axes.axhline(1 - targets.attainment_fraction, color="grey", ls=":", label="target")
    axes.set(xlabel="GPU-hours", ylabel="fraction of requests that miss the targets", yscale="log", xscale="log")
    axes.invert_yaxis()
    axes.legend()
    return _png(figure)


def _draw_replicas(points: Mapping[str, Point]) -> bytes:
    figure = _figure(11, 2.3 * len(points))
    for axes, (name, point) in zip(figure.subplots(len(points), sharex=True, squeeze=False)[:, 0], points.items(), strict=True):
        timeline = point.result.timeline
        load = axes.twinx()
        load.fill_between(timeline.at_s, timeline.arrived_per_s, color="tab:orange", alpha=0.25, lw=0)
        load.set_ylabel("requests/s")
        total = [ready + starting for ready, starting in zip(timeline.ready, timeline.starting, strict=True)]
        axes.step(timeline.at_s, total, where="post", lw=0.8, color="tab:grey", label="starting or ready")
        axes.step(timeline.at_s, timeline.ready, where="post", label="ready")
        axes.set(title=name, ylabel="replicas", ylim=(0, None))
        axes.legend(loc="upper left", fontsize="small")
    axes.set_xlabel("s")
    return _png(figure)


def _draw_latencies(points: Mapping[str, Point], targets: Targets) -> bytes:
    figure = _figure(11, 4)
    kinds = (("TTFT, s", "ttft_s", targets.ttft_s), ("TPOT, s", "tpot_s", targets.tpot_s))
    for axes, (label, field, target) in zip(figure.subplots(1, 2), kinds, strict=True):
        for name, point in points.items():
            if values := [value for value in getattr(point.result, field) if math.isfinite(value) and value > 0]:
                axes.ecdf(values, label=name)
        axes.axvline(target, color="grey", ls=":")
        axes.set(xlabel=label, ylabel="fraction of requests", xscale="log")
        axes.legend(fontsize="small")
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()
