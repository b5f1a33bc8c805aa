"""The second start is quick: an environment that is as the lock file says is left alone."""

import os
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[3] / "Makefile"
SOURCES = ("requirements/cpu.lock", "pyproject.toml")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the environment is made of, and the stamp of one that was made later."""
    for name in (*SOURCES, "venv/.installed"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
    return tmp_path


def planned(checkout: Path) -> str:
    """What `make setup` would run there."""
    command = ["make", "-n", "-f", str(MAKEFILE), "setup", "VENV=venv"]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout


def test_setup_of_an_environment_that_is_up_to_date_runs_nothing(checkout: Path) -> None:
    assert "pip" not in planned(checkout)


@pytest.mark.parametrize("name", SOURCES)
def test_setup_after_a_change_of_what_is_locked_installs_again(checkout: Path, name: str) -> None:
    os.utime(checkout / name, (2, 2))
    plan = planned(checkout)
    assert "venv/bin/pip install" in plan
    assert "-r requirements/cpu.lock" in plan
    assert "touch venv/.installed" in plan


def test_setup_without_an_environment_installs_one(checkout: Path) -> None:
    (checkout / "venv" / ".installed").unlink()
    assert "-m venv venv" in planned(checkout)
