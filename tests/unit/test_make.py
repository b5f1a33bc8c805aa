"""What `make` would do, without doing it."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def planned(environment: Path) -> str:
    """The commands of `make setup` for an environment in this folder."""
    command = ["make", "--dry-run", "setup", f"VENV={environment}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that was set up after everything in the repository was written."""
    newest = max((ROOT / name).stat().st_mtime for name in ("requirements/cpu.lock", "pyproject.toml"))
    stamp = tmp_path / ".installed"
    stamp.touch()
    os.utime(stamp, (newest + 1, newest + 1))
    return tmp_path


def test_setup_a_second_time_installs_nothing(environment: Path) -> None:
    assert "pip" not in planned(environment)


def test_setup_after_the_lock_file_has_changed_installs_again(environment: Path) -> None:
    os.utime(environment / ".installed", (1, 1))
    assert "install" in planned(environment)
    assert "requirements/cpu.lock" in planned(environment)
