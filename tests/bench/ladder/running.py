"""Climbs the ladder, writes what came of it and shows it."""

from pathlib import Path

from tests.bench.ladder import plot, report
from tests.bench.ladder.climbing import Size, climb
from tests.bench.ladder.figures import Ladder
from tests.bench.ladder.rungs import values
from tests.bench.machine import busy_fraction
from tests.bench.view import View


def run(size: Size, folder: Path, view: View) -> Ladder:
    """Raises StartError where a rung does not start, NotComparableError where requests fail."""
    busy = busy_fraction()
    ladder = climb(size, folder, view)
    written = report.write(folder, ladder, values(), busy)
    report.show(view, ladder)
    report.show_files(view, written, plot.write(folder, ladder), busy)
    return ladder
