"""Child processes: started in a session of their own, watched for CPU time, and gone at the end with all that they started."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

_STOP_S = 30.0
_LOG_TAIL_CHARACTERS = 3_000


class StartError(RuntimeError):
    """A process did not start, or ended too early. The message ends with its log's last lines."""


@contextlib.contextmanager
def python_process(
    arguments: list[str], environment: Mapping[str, str], log: Path, pass_fds: tuple[int, ...] = (), cwd: Path | None = None
) -> Iterator[psutil.Popen]:
    """A Python process from this environment; at the end it is terminated, then killed with all it started.

    A terminal's Ctrl-C does not reach it.
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
    """SIGTERM, then SIGKILL for what is left of the process and its descendants."""
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
    """The process and everything below it that lives."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def log_tail(log: Path) -> str:
    """The end of a log file."""
    return log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARACTERS:]


class CpuMeter:
    """CPU seconds that processes use from `start` to `read`, those that are born meanwhile included."""

    def __init__(self, processes: Callable[[], list[psutil.Process]]) -> None:
        self._processes = processes
        self._before: dict[psutil.Process, float] = {}

    def start(self) -> None:
        """Begins to count."""
        self._before = _cpu_seconds(self._processes())

    def read(self) -> float:
        """User and system time since the start; of processes that have ended meanwhile, nothing."""
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
    """Memory that processes hold, MiB: of a page that several share, each has its part (PSS).

    Where a process does not let that be read, it counts with all its pages (RSS).
    """
    return sum(map(_held_bytes, processes)) / 2**20


def _held_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            return int(process.memory_full_info().pss)
        except (psutil.AccessDenied, AttributeError):
            return int(process.memory_info().rss)
    return 0
