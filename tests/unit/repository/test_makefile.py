"""`make setup` does nothing if the environment is up to date, and installs again after a change of what is locked."""

import os
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[3] / "Makefile"
SOURCES = ("requirements/cpu.lock", "requirements/install.py", "pyproject.toml")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that an environment is made from, and the stamp of an environment that is not older."""
    for name in (*SOURCES, "venv/.installed"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
    return tmp_path


def planned(checkout: Path, target: str = "setup") -> str:
    """The commands that `make` would run there for a target."""
    command = ["make", "-n", "-f", str(MAKEFILE), target, "VENV=venv"]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout


def test_setup_environment_up_to_date_runs_nothing(checkout: Path) -> None:
    assert "install" not in planned(checkout)


@pytest.mark.parametrize("name", SOURCES)
def test_setup_after_a_change_of_a_source_installs_again(checkout: Path, name: str) -> None:
    os.utime(checkout / name, (2, 2))
    plan = planned(checkout)
    assert "venv/bin/python requirements/install.py requirements/cpu.lock" in plan
    assert "touch venv/.installed" in plan


def test_setup_without_an_environment_creates_one(checkout: Path) -> None:
    (checkout / "venv" / ".installed").unlink()
    assert "-m venv venv" in planned(checkout)


def test_unit_runs_only_the_unit_tests(checkout: Path) -> None:
    assert planned(checkout, "unit").splitlines()[-1].endswith("pytest tests/unit")


def test_ci_runs_make_test() -> None:
    assert (MAKEFILE.parent / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
