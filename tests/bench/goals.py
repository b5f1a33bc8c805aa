"""Measurement of the goals (`make goals`). It runs the benchmarks and prints one line per goal:

    goal <id> <value> <op> <target> ok|short

If a goal cannot be measured, its value is "unmeasured", it counts as short, and the line ends with the reason. Goal lines go to stdout,
progress and tables to stderr. The exit code is 1 if a goal is short. To add a goal, add a row to `goal_table.GOALS`.
"""

import argparse
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten

from tests.bench import results
from tests.bench.goal import Goal
from tests.bench.goal_runs import Runs
from tests.bench.goal_table import GOALS, LONG_GOALS
from tests.bench.processes import stop_on_sigterm
from tests.bench.view import View

_MAX_REASON_CHARACTERS = 300

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}
"""Relations between a value and its target."""


def holds(goal: Goal, value: float) -> bool:
    """Returns whether a value meets its goal."""
    return OPERATORS[goal.op](value, goal.target)


def measured_line(goal: Goal, value: float) -> str:
    """Returns a goal's line, with as many digits as are needed to show on which side of the target the value is."""
    shown = next((text for digits in (3, 4, 5) if holds(goal, float(text := f"{value:.{digits}g}")) == holds(goal, value)), repr(value))
    return f"goal {goal.id} {shown} {goal.op} {goal.target:g} {'ok' if holds(goal, value) else 'short'}"


def unmeasured_line(goal: Goal, reason: str) -> str:
    """Returns the line of a goal that could not be measured, with the reason, which is shortened if it is long."""
    return f"goal {goal.id} unmeasured {goal.op} {goal.target:g} short ({shorten(reason, _MAX_REASON_CHARACTERS, placeholder=' ...')})"


def measure_all(goals: Sequence[Goal], runs: Runs, print_line: Callable[[str], None]) -> bool:
    """Prints each goal's line as soon as it is measured, and returns whether all goals are met."""
    all_met = True
    for goal in goals:
        try:
            value = goal.measure(runs)
        except Exception as error:  # noqa: BLE001 - a goal that cannot be measured is short, and the others are still measured
            print_line(unmeasured_line(goal, f"{type(error).__name__}: {error}"))
            all_met = False
        else:
            print_line(measured_line(goal, value))
            all_met = all_met and holds(goal, value)
    return all_met


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.goals", description="Measure the goals and print one line for each.")
    known = [*GOALS, *LONG_GOALS]
    parser.add_argument(
        "--only", action="append", metavar="ID", choices=[goal.id for goal in known], help="measure this goal; may be repeated"
    )
    parser.add_argument(
        "--long", action="store_true", help="measure the goals that take longer than ten minutes each, instead of the others"
    )
    parser.add_argument("--list", action="store_true", help="list the goals without measuring them")
    chosen = parser.parse_args(arguments)
    goals = [goal for goal in known if goal.id in chosen.only] if chosen.only else list(LONG_GOALS if chosen.long else GOALS)
    if chosen.list:
        for goal in goals:
            print(f"{goal.id}  {goal.op} {goal.target:g}  {goal.measures}")
        return 0
    runs = Runs(results.new_folder("goals"), View())
    return 0 if measure_all(goals, runs, lambda line: print(line, flush=True)) else 1


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
