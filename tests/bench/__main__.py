"""`make bench` and `make bench-smoke`: `python -m tests.bench full|smoke [engines|fake]`; besides: `... ladder [--smoke]`, `... router`."""

import argparse
import sys
from collections.abc import Sequence

from tests.bench import engine_comparison, fake_comparison, results, router_scale
from tests.bench.ladder import running as ladder
from tests.bench.ladder.climbing import FULL, SMOKE
from tests.bench.processes import stop_on_sigterm
from tests.bench.view import View


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures neox-serve against what users would pick instead.")
    parser.add_argument(
        "size",
        choices=["full", "smoke", "ladder", "router"],
        help="full: five rounds of everything; smoke: one round in under 3 minutes; ladder: what each part adds; router: its decisions",
    )
    parser.add_argument("part", nargs="?", choices=["engines", "fake"], help="only this comparison")
    parser.add_argument("--smoke", action="store_true", help="the ladder without Ray, in a minute")
    chosen = parser.parse_args(arguments)
    if (chosen.part and chosen.size not in {"full", "smoke"}) or (chosen.smoke and chosen.size != "ladder"):
        parser.error("--smoke goes with ladder, a part with full or smoke")
    full, view = chosen.size == "full", View()
    if chosen.size == "ladder":
        ladder_size, name = (SMOKE, "ladder-smoke") if chosen.smoke else (FULL, "ladder")
        ladder.run(ladder_size, results.new_folder(name), view)
        return 0
    if chosen.size == "router":
        router_scale.run(results.new_folder("router"), view)
        return 0
    if chosen.part in {None, "fake"}:
        size = fake_comparison.FULL if full else fake_comparison.SMOKE
        fake_comparison.run(size, results.new_folder(f"{chosen.size}-fake"), view)
    if chosen.part in {None, "engines"}:
        engines = engine_comparison.FULL if full else engine_comparison.SMOKE
        engine_comparison.run(engines, results.new_folder(f"{chosen.size}-engines"), view)
    return 0


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
