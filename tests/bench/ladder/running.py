"""Run of the ladder: measurement, result file and tables."""

from pathlib import Path

from tests.bench.ladder import plot, report
from tests.bench.ladder.climbing import Size, climb
from tests.bench.ladder.figures import Ladder
from tests.bench.ladder.rungs import values
from tests.bench.machine import busy_fraction
from tests.bench.view import View


def run(size: Size, folder: Path, view: View) -> Ladder:
    """Measures the ladder, writes result.json and ladder.png, and shows tables.

    Raises StartError if a rung does not start, and NotComparableError if requests fail.
    """
    busy = busy_fraction()
    ladder = climb(size, folder, view)
    written = report.write(folder, ladder, values(), busy)
    report.show(view, ladder)
    report.show_files(view, written, plot.write(folder, ladder), busy)
    return ladder
