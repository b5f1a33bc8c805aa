"""Installs a lock file into the environment of the interpreter that runs this, and completes torch if it does not import.

PyTorch publishes builds without CUDA on an index of its own. A machine that does not know that index gets the CUDA build of the same
version from PyPI. That build also runs on CPUs, but it needs CUDA libraries that the lock file does not name, so they are installed here.
"""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
"""A `pip install` that prints only errors."""

Run = Callable[[Sequence[str]], int]
"""Runs a command and returns its exit status."""


def run(command: Sequence[str]) -> int:
    """Runs a command with its output on this terminal, and returns its exit status."""
    return subprocess.run(command, check=False).returncode


def imports_torch() -> bool:
    """Whether `import torch` succeeds in a new process of this interpreter."""
    return subprocess.run([sys.executable, "-c", "import torch"], check=False, capture_output=True).returncode == 0


def missing_requirements(requirements: Iterable[str], is_installed: Callable[[str], bool]) -> list[str]:
    """The requirements that apply to this machine and name a distribution that is not installed.

    A distribution that is installed is never named, whatever its version, because the lock file has already decided on it.
    """
    # A new environment has no `packaging` of its own until the lock file is installed.
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]
    applicable = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{_with_extras(one)}{one.specifier}" for one in applicable if not is_installed(one.name)]


def complete_torch(lock: Path, run: Run, requirements: Iterable[str], is_installed: Callable[[str], bool]) -> int:
    """Installs what torch requires and the lock file does not name. Returns pip's exit status, or 1 if nothing is missing."""
    missing = missing_requirements(requirements, is_installed)
    if not missing:
        return 1
    sys.stdout.write(
        "This machine's registry has torch's CUDA build. It also runs on CPUs, but needs its CUDA libraries to load:\n"
        "installing them from the same registry (about 3 GB more on disk) ...\n"
    )
    sys.stdout.flush()
    return run([*PIP, "--no-warn-conflicts", "--constraint", str(lock), *missing])


def install(lock: Path, *, project: Path | None, run: Run = run, imports_torch: Callable[[], bool] = imports_torch) -> int:
    """Installs the lock file, then the project in editable form unless it is None, then what torch lacks.

    Returns 0, or the exit status of the step that failed.
    """
    if status := run([*PIP, "--no-deps", "--requirement", str(lock)]):
        return status
    if project is not None and (status := run([*PIP, "--no-deps", "--no-build-isolation", "--editable", str(project)])):
        return status
    if imports_torch():
        return 0
    if status := complete_torch(lock, run, importlib.metadata.requires("torch") or [], _is_installed):
        return status
    if imports_torch():
        return 0
    return run([sys.executable, "-c", "import torch"])


def _with_extras(requirement: "Requirement") -> str:
    extras = ",".join(sorted(requirement.extras))
    return f"{requirement.name}[{extras}]" if extras else requirement.name


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Takes the lock file, and `--no-project` to leave out the project, as images do."""
    lock = Path(arguments[0]).resolve()
    return install(lock, project=None if "--no-project" in arguments else lock.parents[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
