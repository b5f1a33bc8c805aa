"""Processes of a system under test: started in a session of their own, watched for CPU time, and gone at the end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_STOP_S = 30.0
_LOG_TAIL_CHARACTERS = 3_000


class StartError(RuntimeError):
    """A system or the load generator did not start, or ended too early. The message ends with its log's last lines."""


@contextlib.contextmanager
def python_process(
    arguments: list[str], environment: Mapping[str, str], log: Path, pass_fds: tuple[int, ...] = ()
) -> Iterator[psutil.Popen]:
    """A Python process from this environment that can import the repository; at the end it is terminated, then killed with all it started."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment, "PYTHONPATH": path},
            cwd=ROOT,
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


def wait_for(condition: Callable[[], bool], process: psutil.Popen, log: Path, timeout_s: float, what: str) -> None:
    """Waits until the condition holds. Raises StartError where the process ends before that, or time does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline_s:
            state = f"exit code {process.returncode}" if process.poll() is not None else f"not within {timeout_s:g} s"
            raise StartError(f"{what}: {state}; the end of {log}:\n{log_tail(log)}")
        time.sleep(0.1)


def log_tail(log: Path) -> str:
    """The end of a log file."""
    return log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARACTERS:]


def stop_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does, by an exception, so that every system is stopped: each is in a session of its own."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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
