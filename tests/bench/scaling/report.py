"""Reports of the comparison of scaling policies: for each traffic and start-up time a table, all results, and a page with the curves.

Run `python -m tests.bench.scaling.report --traffic azure --startup 30` for one case; all cases take hours.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from autoscaling.simulator.comparison import process_pool
from cluster.views.simulation import write_report
from tests.bench import results
from tests.bench.processes import stop_on_sigterm
from tests.bench.scaling import runs as scaling
from tests.bench.view import View

_PROCESSES = 2


def run(folder: Path, view: View, traffics: Sequence[str] = scaling.TRAFFIC, startups_s: Sequence[float] = scaling.STARTUPS_S) -> None:
    """Measures the cases one by one, and writes each report when it is complete."""
    with process_pool(_PROCESSES) as executor:
        for traffic in traffics:
            for startup_s in startups_s:
                with view.step(f"scaling: {traffic} traffic, start-up time {startup_s:.0f} s"):
                    found = scaling.measure(traffic, startup_s, executor)
                lines = scaling.table(traffic, startup_s, found)
                view.say("\n".join(lines))
                _write(folder / f"{traffic}-{startup_s:.0f}s", startup_s, lines, found)


def _write(folder: Path, startup_s: float, lines: Sequence[str], found: Sequence[scaling.Compared]) -> None:
    targets = scaling.simulation_config(startup_s, 1).spec.targets
    write_report(folder, lines[0], lines[1:2], found[0].curves, targets)
    content = {
        "over_best_peer": scaling.over_best_peer(found),
        "over_oracle": scaling.over_oracle(found),
        "reversals_per_day": scaling.reversals_per_day(found, startup_s),
        "seeds": [asdict(row) for one in found for row in scaling.rows(one, startup_s)],
    }
    (folder / "result.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling.report", description="Compare scaling policies in the simulator.")
    parser.add_argument("--traffic", choices=scaling.TRAFFIC, action="append", help="only this traffic; may be repeated")
    parser.add_argument("--startup", type=float, action="append", metavar="SECONDS", help="only this start-up time; may be repeated")
    chosen = parser.parse_args(arguments)
    traffics = chosen.traffic or scaling.TRAFFIC
    if set(traffics) - {"diurnal"} and not scaling.has_shared_data():
        parser.error(f"{scaling.SHARED}: the recorded traffic is missing; only --traffic diurnal works without it")
    run(results.new_folder("scaling"), View(), traffics, chosen.startup or scaling.STARTUPS_S)
    return 0


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
