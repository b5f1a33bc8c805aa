"""Command line of the benchmarks, `python -m tests.bench`. `make bench` and `make bench-smoke` run most of them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import results
from tests.bench.engines import defaults_comparison, engine_comparison, engine_plot, fake_comparison
from tests.bench.growth import plot as growth_plot
from tests.bench.growth import points
from tests.bench.growth import running as growth
from tests.bench.ladder import running as ladder
from tests.bench.ladder.climbing import FULL, SMOKE
from tests.bench.processes import stop_on_sigterm
from tests.bench.router import policies as routing_policies
from tests.bench.router import scale as router_scale
from tests.bench.view import View


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    chosen, view = _parse(arguments), View()
    match chosen.size:
        case "plot":
            is_growth = "points" in json.loads(chosen.result.read_text(encoding="utf-8"))
            view.say(str((growth_plot.write if is_growth else engine_plot.write)(chosen.result)))
        case "ladder":
            size, name = (SMOKE, "ladder-smoke") if chosen.smoke else (FULL, "ladder")
            ladder.run(size, results.new_folder(name), view)
        case "growth":
            curves, name = (points.SMOKE, "growth-smoke") if chosen.smoke else (points.FULL, "growth")
            growth.run(curves, results.new_folder(name), view)
        case "router":
            router_scale.run(results.new_folder("router"), view)
        case "routing":
            routing_policies.measure(results.new_folder("routing"), view)
        case _:
            _compare(chosen.size, chosen.part, view)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Compare neox-serve with other serving systems and measure its parts."
    )
    parser.add_argument(
        "size",
        choices=["full", "smoke", "ladder", "growth", "router", "routing", "plot"],
        help="full: all comparisons in five rounds; smoke: one round in less than 3 minutes; ladder: the cost that each part adds; "
        "growth: cost as a function of load; router: the router's decisions; routing: simulated routing policies; "
        "plot: draw the picture of a result.json again",
    )
    parser.add_argument("part", nargs="?", choices=["engines", "fake", "defaults"], help="run only this comparison of full or smoke")
    parser.add_argument("--result", type=Path, help="for plot: the result.json of full engines or growth")
    parser.add_argument("--smoke", action="store_true", help="for ladder and growth: run only a part, in one or two minutes")
    chosen = parser.parse_args(arguments)
    if (chosen.part and chosen.size not in {"full", "smoke"}) or (chosen.smoke and chosen.size not in {"ladder", "growth"}):
        parser.error("--smoke requires ladder or growth, and a part requires full or smoke")
    if chosen.part == "defaults" and chosen.size == "smoke":
        parser.error("defaults requires full")
    if (chosen.result is not None) != (chosen.size == "plot"):
        parser.error("--result and plot require each other")
    return chosen


def _compare(size: str, part: str | None, view: View) -> None:
    """Runs the comparisons of `full` or `smoke`, or only one of them."""
    full = size == "full"
    if part in {None, "fake"}:
        fake = fake_comparison.FULL if full else fake_comparison.SMOKE
        fake_comparison.run(fake, results.new_folder(f"{size}-fake"), view)
    if part in {None, "engines"}:
        engines = engine_comparison.FULL if full else engine_comparison.SMOKE
        engine_comparison.run(engines, results.new_folder(f"{size}-engines"), view)
    if full and part in {None, "defaults"}:
        defaults_comparison.run(results.new_folder("full-defaults"), view)


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
