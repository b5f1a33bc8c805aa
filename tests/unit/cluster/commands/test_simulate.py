"""`neox-serve simulate`: its figures, its report, and its messages about invalid input."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoscaling.simulator.compared_policies import COMPARED_POLICIES
from cluster.cli import app
from cluster.commands.simulate import PolicyName

PAGE = (Path(__file__).parents[4] / "docs" / "operator" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    neox-serve (.+)$", PAGE, flags=re.MULTILINE)
QUICK = ["simulate", "--rate", "2", "--duration", "300", "--warm-up", "60", "--startup", "20"]


def test_policy_names_are_those_of_the_simulator() -> None:
    assert [name.value for name in PolicyName] == list(COMPARED_POLICIES)


def test_simulate_with_one_value_writes_figures_and_a_report(tmp_path: Path) -> None:
    figures, report = tmp_path / "figures.json", tmp_path / "report"
    arguments = [*QUICK, "--policy", "token-aware", "--policy", "oracle", "--knob", "1.0", "--json", str(figures), "--report", str(report)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "token-aware" in done.output
    written = json.loads(figures.read_text())
    assert {row["policy"] for row in written["policies"]} == {"token-aware", "oracle"}
    assert all(0 <= row["attainment_fraction"] <= 1 and row["gpu_hours"] > 0 for row in written["policies"])
    page = (report / "report.html").read_text()
    (lower_bound,) = re.findall(r"Lower bound of any policy: ([0-9.]+) GPU-hours", page)
    assert 0 < float(lower_bound) < min(row["gpu_hours"] for row in written["policies"])
    assert page.count("data:image/png;base64,") == 3
    assert {path.name for path in report.glob("*.png")} == {"attainment.png", "replicas.png", "latencies.png"}


def test_simulate_curve_finds_the_cheapest_setting_that_meets_the_targets(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = [*QUICK, "--policy", "static", "--points", "3", "--refinements", "2", "--processes", "1", "--json", str(figures)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    written = json.loads(figures.read_text())
    assert len(written["curves"]["static"]) >= 3
    row = written["policies"][0]
    meeting = [one for one in written["curves"]["static"] if one["attainment_fraction"] >= 0.99]
    assert row["gpu_hours"] == min(one["gpu_hours"] for one in meeting)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rate", "0"], "--rate"),
        (["--trace", "/nowhere.csv"], "--trace"),
        (["--tp", "3"], "tensor-parallel size 3"),
        (["--warm-up", "4000"], "--warm-up"),
        (["--initial", "99"], "--initial"),
        (["--attainment", "1.5"], "attainment_fraction"),
        (["--min", "5", "--max", "2", "--initial", "2"], "min <= max"),
        (["--json", "/nowhere/figures.json"], "--json"),
    ],
)
def test_simulate_invalid_option_is_named(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code != 0
    assert named in done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_on_scaling_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"2023-11-16 18:{second // 60:02d}:{second % 60:02d}.000000,500,50" for second in range(700))
    (tmp_path / "requests.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows + "\n")
    quick = ["--policy", "static", "--knob", "2"] if command.startswith("simulate") else []
    done = CliRunner().invoke(app, [*shlex.split(command), *quick])
    assert done.exit_code == 0, done.output
