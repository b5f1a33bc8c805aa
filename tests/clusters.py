"""Whole clusters for tests, started and stopped by the commands that users run."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.local import state
from neox_serve.settings import Settings, restore

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 90.0
_PORTS = iter(random.sample(range(20_000, 32_000), 12_000))

ROUTER = "ServeReplica:neox-router:router"
GATEWAY = "ServeReplica:neox-gateway:gateway"
GENERATION = "ServeReplica:neox-generation:generation"
"""Process titles that Ray gives to replicas: application and deployment."""


class CommandCluster:
    """`neox-serve up` in a separate process group, with settings from a file."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.values = {**values, "state_folder": str(folder / "state")}
        self.settings: Settings = restore(self.values)
        self.address = f"127.0.0.1:{self.settings.gateway.port}"
        self.log = folder / "up.log"
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(self.values), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the command and waits until it serves."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "up", "--config", str(self._config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for(lambda: "Serving " in self.log.read_text(errors="replace"), START_TIMEOUT_S)

    @property
    def running(self) -> state.RunningCluster:
        """The record that the command keeps of its cluster."""
        cluster = state.running(self.settings.state_folder)
        assert cluster is not None, "the cluster is not running"
        return cluster

    @property
    def dashboard_url(self) -> str:
        """Address of Ray's dashboard."""
        return self.running.dashboard_url

    @property
    def shell_environment(self) -> dict[str, str]:
        """Environment in which a user's commands address this cluster."""
        return os.environ | {
            "NEOX_SERVE_GATEWAY__PORT": str(self.settings.gateway.port),
            "NEOX_SERVE_METRICS__PORT": str(self.settings.metrics.port),
            "NEOX_SERVE_STATE_FOLDER": str(self.settings.state_folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def processes(self, title: str) -> list[psutil.Process]:
        """Returns the live processes of this cluster whose command line contains the title."""
        return [process for process in self.family() if title in " ".join(_command_line(process))]

    def family(self) -> list[psutil.Process]:
        """Returns the command's process and all its descendants."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            command = psutil.Process(self._process.pid)
            return [command, *command.children(recursive=True)]
        return []

    def roll(self, values: dict[str, Any], timeout_s: float = START_TIMEOUT_S) -> None:
        """Applies changed settings by `neox-serve apply`, which waits until Serve has replaced the affected processes."""
        config = self._config.with_name("changed.yaml")
        config.write_text(yaml.safe_dump({**values, "state_folder": str(self.settings.state_folder)}), encoding="utf-8")
        command = [sys.executable, "-m", "cluster.cli", "apply", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, done.stderr

    def down(self) -> "subprocess.Popen[bytes]":
        """Starts `neox-serve down`, which ends when the cluster has stopped."""
        return subprocess.Popen([sys.executable, "-m", "cluster.cli", "down", "--config", str(self._config)])

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Sends a signal to the whole process group, as a terminal does."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def wait_stopped(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Waits until the command ends and returns its exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """Stops the cluster by SIGTERM, and kills processes that remain."""
        assert self._process is not None
        family = self.family()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def _wait_for(self, condition: Any, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        assert self._process is not None
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError(f"`neox-serve up` did not start:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.1)


@contextlib.contextmanager
def running_cluster(folder: Path, values: dict[str, Any]) -> Iterator[CommandCluster]:
    """Runs a cluster until the block ends."""
    cluster = CommandCluster(folder, values)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def free_port() -> int:
    """Returns a TCP port that nothing listens on, a different one at each call.

    It is outside the ranges that the kernel uses for outgoing connections and Ray for its workers, so that it is not taken before its use.
    """
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def wait_until(condition: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    """Waits until a condition is true and returns its value."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"the condition was not true within {timeout_s:g} s"
        time.sleep(0.1)
    return found
