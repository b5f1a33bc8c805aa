"""Child processes: started in a session of their own, measured, and stopped together with all their descendants."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

_STOP_S = 30.0
"""How long a process may take to exit before it is killed."""
_LOG_TAIL_CHARACTERS = 3_000
"""Length of the part of a log that error messages show."""


class StartError(RuntimeError):
    """A process did not start or ended too early. The message ends with the last lines of its log."""


@contextlib.contextmanager
def python_process(
    arguments: list[str], environment: Mapping[str, str], log: Path, pass_fds: tuple[int, ...] = (), cwd: Path | None = None
) -> Iterator[psutil.Popen]:
    """Runs a Python process; at the end of the block it is terminated, and killed with its descendants if necessary.

    Ctrl-C in a terminal does not reach it. environment: variables in addition to those of this process. log: file for its output.
    """
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: psutil.Popen) -> None:
    """Sends SIGTERM to a process, then SIGKILL to it and its descendants if they are still running."""
    members = family(process)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=_STOP_S)


def family(process: psutil.Process) -> list[psutil.Process]:
    """Returns a process and its living descendants; empty if the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def log_tail(log: Path) -> str:
    """Returns the end of a log file."""
    return log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARACTERS:]


class CpuMeter:
    """Measures the CPU seconds that processes use between `start` and `read`, including processes that start in between."""

    def __init__(self, processes: Callable[[], list[psutil.Process]]) -> None:
        self._processes = processes
        self._before: dict[psutil.Process, float] = {}

    def start(self) -> None:
        """Starts the measurement."""
        self._before = _cpu_seconds(self._processes())

    def read(self) -> float:
        """Returns user plus system time since the start, without processes that have ended since."""
        now = _cpu_seconds(self._processes())
        return sum(used - self._before.get(process, 0.0) for process, used in now.items())


def _cpu_seconds(processes: list[psutil.Process]) -> dict[psutil.Process, float]:
    used = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[process] = times.user + times.system
    return used


def resident_mib(processes: list[psutil.Process]) -> float:
    """Returns the memory of processes in MiB. Shared pages are divided among the processes that share them (PSS).

    A process whose PSS cannot be read counts with its resident set size (RSS).
    """
    return sum(map(_memory_bytes, processes)) / 2**20


def _memory_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            return int(process.memory_full_info().pss)
        except (psutil.AccessDenied, AttributeError):
            return int(process.memory_info().rss)
    return 0
