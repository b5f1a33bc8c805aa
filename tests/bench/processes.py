"""Processes of the systems under test, which can import the tests."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from neox_serve.loadgen.processes import StartError, log_tail, python_process

ROOT = Path(__file__).parents[2]
"""The repository's root folder."""


@contextmanager
def system_process(arguments: list[str], environment: Mapping[str, str], log: Path) -> Iterator[psutil.Popen]:
    """Runs a Python process in the repository's root folder until the end of the block."""
    with python_process(arguments, {**environment, **importing_tests()}, log, cwd=ROOT) as process:
        yield process


def importing_tests() -> dict[str, str]:
    """Returns environment variables with which a Python process can import the tests."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def wait_for(condition: Callable[[], bool], process: psutil.Popen, log: Path, timeout_s: float, what: str) -> None:
    """Waits until the condition is true. Raises StartError if the process ends first or the timeout expires."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline_s:
            state = f"exit code {process.returncode}" if process.poll() is not None else f"not ready within {timeout_s:g} s"
            raise StartError(f"{what}: {state}; the end of {log}:\n{log_tail(log)}")
        time.sleep(0.1)


def stop_on_sigterm() -> None:
    """Makes SIGTERM raise KeyboardInterrupt, so that all systems are stopped. Each runs in its own session."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
