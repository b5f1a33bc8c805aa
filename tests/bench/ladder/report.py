"""The results of the ladder as tables and as a file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.bench.ladder.climbing import TOPS
from tests.bench.ladder.figures import Climb, Ladder
from tests.bench.ladder.rungs import BARE, ROLES
from tests.bench.machine import machine_facts
from tests.bench.spreads import Spread
from tests.bench.view import View

_FIGURES: tuple[tuple[str, Callable[[Climb], float]], ...] = (
    ("lag p50 ms", lambda climb: 1e3 * climb.steady.lag.p50_s),
    ("lag p99 ms", lambda climb: 1e3 * climb.steady.lag.p99_s),
    ("lag highest ms", lambda climb: 1e3 * climb.steady.lag.highest_s),
    ("highest sustained streams", lambda climb: climb.highest.workload.streams if climb.highest else 0),
    ("256 streams tok/s", lambda climb: climb.many.summary.output_throughput),
    ("256 streams chunks/response", lambda climb: climb.many.summary.chunks_per_response),
    ("requests/s", lambda climb: climb.one_token.summary.request_throughput),
    ("E2E p50 ms", lambda climb: climb.one_token.summary.e2el_ms.median),
    ("E2E p99 ms", lambda climb: climb.one_token.summary.e2el_ms.p99),
    ("CPU us/request", lambda climb: climb.one_token.system_cpu_us_per_request),
)


def rung_figures(ladder: Ladder, rung: str) -> dict[str, Spread]:
    """Returns the values of a rung that tables show."""
    figures = {name: ladder.of(rung, figure) for name, figure in _FIGURES}
    return {
        "added TTFT p50 ms": ladder.added_ttft_ms(rung),
        "added TTFT p99 ms": ladder.added_p99_ttft_ms(rung),
        **figures,
        "highest sustained tok/s": ladder.max_carried(rung),
    }


def cpu_us_per_token(ladder: Ladder, rung: str) -> dict[str, Spread]:
    """Returns the CPU microseconds per token of steady streams, by role."""
    return _by_role(ladder, rung, lambda role, climb: climb.steady.cpu_us_per_token(role))


def cpu_us_per_request(ladder: Ladder, rung: str) -> dict[str, Spread]:
    """Returns the CPU microseconds per request with one output token, by role."""
    return _by_role(ladder, rung, lambda role, climb: climb.one_token.cpu_us_per_request(role))


def ratios(ladder: Ladder) -> dict[str, Spread]:
    """Returns the ratios that goals refer to, for every rung that has them."""
    found = {f"tok/s of {rung} over {BARE}, 256 streams": ladder.fake_over_bare_grpc(rung) for rung in ladder.rungs if rung != BARE}
    tops = [rung for rung in ladder.rungs if rung in TOPS]
    return found | {f"p99 lag with a stalled client over that without, {rung}": ladder.stalled_over_healthy_lag(rung) for rung in tops}


def write(folder: Path, ladder: Ladder, settings: Mapping[str, object], busy_before: float) -> Path:
    """Writes result.json and returns its path. `busy_before` is the CPU usage before the start, from 0 to 1."""
    content = {
        "machine": machine_facts(),
        "busy_fraction_before": busy_before,
        "settings": settings,
        "rungs": {
            rung: {name: asdict(value) for name, value in rung_figures(ladder, rung).items()}
            | {
                "CPU us/token": _as_dicts(cpu_us_per_token(ladder, rung)),
                "CPU us/request by role": _as_dicts(cpu_us_per_request(ladder, rung)),
            }
            for rung in ladder.rungs
        },
        "ratios": _as_dicts(ratios(ladder)),
        "runs": asdict(ladder),
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
    return path


def show(view: View, ladder: Ladder) -> None:
    """Shows tables of medians over the rounds, and of ratios with their spread."""
    rounds = len(ladder.climbs) // len(ladder.rungs)
    figures = {rung: rung_figures(ladder, rung) for rung in ladder.rungs}
    _table(
        view,
        f"The ladder: 64 streams of 50 tokens per second; requests with one token from 64 callers; medians of {rounds} rounds",
        figures,
    )
    _table(view, "CPU microseconds per token by process", {rung: cpu_us_per_token(ladder, rung) for rung in ladder.rungs})
    _table(view, "CPU microseconds per request by process", {rung: cpu_us_per_request(ladder, rung) for rung in ladder.rungs})
    rows = [[name, f"{value.median:.3f}", f"{value.low:.3f}", f"{value.high:.3f}"] for name, value in ratios(ladder).items()]
    view.table("Ratios within each round", ["", "median", "low", "high"], rows)
    if ladder.fan_ins:
        _show_fan_in(view, ladder)


def show_files(view: View, result: Path, plot: Path, busy_before: float) -> None:
    """Prints where the results are, and a warning if the machine was not idle."""
    view.warn_if_busy(busy_before)
    view.say(f"All results: {result}\nPlot: {plot}")


def _show_fan_in(view: View, ladder: Ladder) -> None:
    rows = []
    for each in ladder.fan_ins:
        summary = each.measured.summary
        cells = (summary.completed, summary.failed, summary.ttft_ms.median, summary.ttft_ms.p99)
        rows.append([each.rung, *(f"{cell:,.0f}" for cell in cells)])
    view.table("Fan-in: many slow streams at once", ["rung", "completed", "failed", "TTFT p50 ms", "p99"], rows)


def _table(view: View, title: str, figures: Mapping[str, Mapping[str, Spread]]) -> None:
    """Shows a table with a row for each value and a column for each rung."""
    names = next(iter(figures.values()))
    rows = [[name, *(f"{of_rung[name].median:,.1f}" for of_rung in figures.values())] for name in names]
    view.table(title, ["", *figures], rows)


def _by_role(ladder: Ladder, rung: str, figure: Callable[[str, Climb], float]) -> dict[str, Spread]:
    return {role: ladder.of(rung, partial(figure, role)) for role in ROLES}


def _as_dicts(spreads: Mapping[str, Spread]) -> dict[str, object]:
    return {name: asdict(value) for name, value in spreads.items()}
