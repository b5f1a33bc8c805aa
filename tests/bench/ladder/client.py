"""The ladder's side of its client: starts the process, hands it orders, takes results back with the CPU time they cost."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import psutil

from tests.bench.ladder.client_messages import Go, Order, Result
from tests.bench.ladder.rungs import CLIENT, ROLES, role_of
from tests.bench.load_messages import Ended, Failed, Progress, Ready
from tests.bench.processes import CpuMeter, StartError, log_tail, python_process
from tests.bench.systems import Running
from tests.bench.targets.grpc_gateway import GatewaySpec

M = TypeVar("M")

_SILENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of an order. cpu_s: seconds that each role's processes used meanwhile."""

    result: Result
    cpu_s: Mapping[str, float]


class Client:
    """A client of one running system. meters: by role."""

    def __init__(self, connection: Connection, meters: Mapping[str, CpuMeter], log: Path) -> None:
        self._connection = connection
        self._meters = meters
        self._log = log

    def run(self, order: Order, on_progress: Callable[[int], None]) -> Sample:
        """Carries an order out. Raises StartError where the client dies."""
        self._connection.send(order)
        _expect(self._receive(), Ready)
        for meter in self._meters.values():
            meter.start()
        self._connection.send(Go())
        while isinstance(message := self._receive(), Progress):
            on_progress(message.ended)
        _expect(message, Ended)
        cpu_s = {role: meter.read() for role, meter in self._meters.items()}
        return Sample(_expect(self._receive(), Result), cpu_s)

    def _receive(self) -> object:
        try:
            message: object = self._connection.recv() if self._connection.poll(_SILENCE_S) else Failed(f"silent for {_SILENCE_S:g} s")
        except EOFError:
            message = Failed("the process has ended")
        if isinstance(message, Failed):
            raise StartError(f"client: {message.reason}; the end of {self._log}:\n{log_tail(self._log)}")
        return message


@contextlib.contextmanager
def client_of(running: Running, folder: Path) -> Iterator[Client]:
    """A client for as long as the block lasts. Its log is client.log in the folder."""
    assert isinstance(running.target, GatewaySpec)
    log = folder / "client.log"
    ours, theirs = socket.socketpair()
    with theirs, Connection(ours.detach()) as connection:
        command = ["-m", "tests.bench.ladder.client_process", str(theirs.fileno()), running.target.address]
        with python_process(command, running.client_environment, log, pass_fds=(theirs.fileno(),)) as process:
            theirs.close()
            yield Client(connection, _meters(running, process), log)


def _meters(running: Running, client: psutil.Process) -> Mapping[str, CpuMeter]:
    """A meter for each role."""
    assert running.processes is not None
    processes = running.processes

    def of_role(role: str) -> Callable[[], list[psutil.Process]]:
        return lambda: [process for process in processes() if role_of(_command_line(process)) == role]

    return {CLIENT: CpuMeter(lambda: [client]), **{role: CpuMeter(of_role(role)) for role in ROLES if role != CLIENT}}


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _expect(message: object, kind: type[M]) -> M:
    if not isinstance(message, kind):
        raise StartError(f"client: expected {kind.__name__}, got {message!r}")
    return message
