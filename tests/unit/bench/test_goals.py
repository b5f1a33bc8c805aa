"""The output lines, results and exit code of `make goals`, without benchmark runs."""

import re
from pathlib import Path
from typing import cast

import pytest

from tests.bench import goals
from tests.bench.engines.comparison import Comparison, Start
from tests.bench.engines.engine_comparison import NEOX, OPENAI
from tests.bench.goal import Goal
from tests.bench.goal_runs import Runs
from tests.bench.goal_table import GOALS, LONG_GOALS
from tests.bench.goals import OPERATORS, holds, measure_all, measured_line, unmeasured_line
from tests.bench.processes import ROOT
from tests.bench.view import View

NO_RUNS = cast("Runs", None)


def goal(value: float | Exception, op: str = ">=", target: float = 0.8) -> Goal:
    """Returns a goal with a known value, or one whose measurement fails."""

    def measure(_runs: Runs) -> float:
        if isinstance(value, Exception):
            raise value
        return value

    return Goal("spine.example", "an example", op, target, measure)


def test_measured_line_met_goal_is_ok() -> None:
    assert measured_line(goal(0), 0.83) == "goal spine.example 0.83 >= 0.8 ok"


def test_measured_line_missed_goal_is_short() -> None:
    assert measured_line(goal(0), 0.5) == "goal spine.example 0.5 >= 0.8 short"


def test_measured_line_narrowly_missed_goal_shows_enough_digits() -> None:
    assert measured_line(goal(0), 0.79996) == "goal spine.example 0.79996 >= 0.8 short"


def test_unmeasured_line_has_the_reason_on_the_same_line() -> None:
    line = unmeasured_line(goal(0), "StartError: not up\nof a log " + 1000 * "x")
    assert line == "goal spine.example unmeasured >= 0.8 short (StartError: not up of a log ...)"


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        (">=", 1.0, True),
        (">", 1.0, False),
        ("<=", 1.0, True),
        ("<", 1.0, False),
        ("<", 0.9, True),
        (">=", float("nan"), False),
        ("<=", float("nan"), False),
    ],
)
def test_holds_at_the_target_depends_on_the_operator(op: str, value: float, expected: bool) -> None:
    assert holds(goal(0, op, 1.0), value) is expected


def test_measure_all_met_goals_returns_true() -> None:
    lines: list[str] = []
    assert measure_all([goal(0.9), goal(1.0)], NO_RUNS, lines.append)
    assert [line.split()[-1] for line in lines] == ["ok", "ok"]


def test_measure_all_continues_after_a_failed_measurement() -> None:
    lines: list[str] = []
    assert not measure_all([goal(RuntimeError("no engine")), goal(0.9)], NO_RUNS, lines.append)
    assert lines == ["goal spine.example unmeasured >= 0.8 short (RuntimeError: no engine)", "goal spine.example 0.9 >= 0.8 ok"]


def test_goals_have_unique_ids_and_known_operators() -> None:
    assert len({goal.id for goal in GOALS}) == len(GOALS)
    assert {goal.op for goal in GOALS} <= OPERATORS.keys()


def test_start_goal_is_the_median_of_the_ratios_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [Start(NEOX, (0,), 12.0), Start(OPENAI, (0,), 10.0), Start(NEOX, (1, 2), 15.0), Start(OPENAI, (1,), 10.0)]
    engines = Comparison([], [*starts, Start(OPENAI, (2,), 12.0)])
    monkeypatch.setattr("tests.bench.engines.engine_comparison.run", lambda *_: engines)
    (row,) = (goal for goal in GOALS if goal.id == "path.start_over_openai_server")
    lines: list[str] = []
    assert measure_all([row], Runs(tmp_path, View()), lines.append)
    assert lines == ["goal path.start_over_openai_server 1.25 <= 1.3 ok"]


def test_runs_failed_run_is_tried_once_and_fails_for_all_its_goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Path] = []

    def fail(folder: Path, _view: View) -> None:
        tries.append(folder)
        raise RuntimeError("no cluster")

    monkeypatch.setattr("tests.bench.faults.rolling.run", fail)
    runs = Runs(tmp_path, View())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no cluster"):
            runs.rolling()
    assert tries == [tmp_path / "rolling"]


def test_main_with_only_measures_only_that_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(goals, "GOALS", (goal(0.9), Goal("spine.other", "another", "<", 1.0, lambda _: 2.0)))
    monkeypatch.setattr("tests.bench.results.new_folder", lambda _: tmp_path)
    assert goals.main(["--only", "spine.example"]) == 0
    assert capsys.readouterr().out == "goal spine.example 0.9 >= 0.8 ok\n"
    assert goals.main([]) == 1
    assert capsys.readouterr().out.splitlines()[1] == "goal spine.other 2 < 1 short"


@pytest.mark.parametrize("goal", [*GOALS, *LONG_GOALS], ids=lambda goal: goal.id)
def test_goal_is_documented_with_its_target(goal: Goal) -> None:
    page = (ROOT / "docs" / "operator" / "benchmarks.md").read_text(encoding="utf-8")
    name = re.sub("^scaling.(azure|servegen|diurnal)_[0-9]+s", "scaling.TRAFFIC_30s", goal.id)
    name = re.sub("^scaling.recovery_[0-9]+s", "scaling.recovery_30s", name)
    (row,) = (line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
    relation, target = re.search(r"(<=|>=|<|>) ([0-9.,]+)[^|]*\|$", row).groups()  # type: ignore[union-attr]
    assert (relation, float(target.replace(",", ""))) == (goal.op, goal.target)
