"""The installer completes torch if the registry's build needs CUDA libraries that the lock file does not name."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "requirements" / "cpu.lock"


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    """requirements/install.py, which is a script and not part of a package."""
    spec = importlib.util.spec_from_file_location("requirements_install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Records commands instead of running them; those whose text has `failing` in it fail."""

    def __init__(self, failing: str = "nothing fails") -> None:
        self.commands: list[str] = []
        self._failing = failing

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(" ".join(command))
        return int(self._failing in self.commands[-1])


def answers(*values: bool) -> Callable[[], bool]:
    """A function that gives one of the values for each call."""
    given = iter(values)
    return lambda: next(given)


def test_install_torch_imports_installs_lock_and_project_only(installer: ModuleType) -> None:
    run = Recorder()
    assert installer.install(LOCK, project=ROOT, run=run, imports_torch=answers(True)) == 0
    assert len(run.commands) == 2
    assert f"--no-deps --requirement {LOCK}" in run.commands[0]
    assert f"--editable {ROOT}" in run.commands[1]


def test_install_lock_cannot_be_installed_stops_there(installer: ModuleType) -> None:
    run = Recorder(failing="--requirement")
    assert installer.install(LOCK, project=ROOT, run=run, imports_torch=answers()) == 1
    assert len(run.commands) == 1


def test_install_without_project_installs_only_the_lock(installer: ModuleType) -> None:
    run = Recorder()
    assert installer.install(LOCK, project=None, run=run, imports_torch=answers(True)) == 0
    assert len(run.commands) == 1


def test_complete_torch_installs_what_is_missing_under_the_lock(installer: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorder()
    required = ["sympy>=1.13.3", 'cuda-toolkit[cublas,cudart]==13.0.2; platform_system == "Linux"', 'optree>=0.13.0; extra == "optree"']
    assert installer.complete_torch(LOCK, run, required, {"sympy"}.__contains__) == 0
    (command,) = run.commands
    assert command.endswith(f"--constraint {LOCK} cuda-toolkit[cublas,cudart]==13.0.2")
    assert "CUDA build" in capsys.readouterr().out


def test_complete_torch_nothing_missing_reports_failure(installer: ModuleType) -> None:
    run = Recorder()
    assert installer.complete_torch(LOCK, run, ["sympy>=1.13.3"], {"sympy"}.__contains__) == 1
    assert run.commands == []


def test_missing_requirements_other_platforms_and_installed_ones_are_left_out(installer: ModuleType) -> None:
    required = ['colorama; platform_system == "Windows"', "triton==3.7.0", "nvidia-cudnn-cu13==9.1"]
    assert installer.missing_requirements(required, {"triton"}.__contains__) == ["nvidia-cudnn-cu13==9.1"]
