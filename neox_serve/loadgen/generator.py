"""The caller's side of the load generator: starts its process, sends it loads and receives the records."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import psutil

from neox_serve.loadgen.load import Load
from neox_serve.loadgen.messages import Connect, Ended, Failed, Interrupt, Progress, Ready, Run, Stop
from neox_serve.loadgen.processes import StartError, log_tail, python_process
from neox_serve.loadgen.records import Outcome
from neox_serve.loadgen.targets import TargetSpec

M = TypeVar("M")

_CONNECT_S = 240.0
"""How long the generator may take to connect to its target."""
_RECORDS_S = 120.0
"""How long the transfer of the records may take."""
_DISCONNECT_S = 30.0
"""How long the generator may take to exit before it is terminated."""


class LoadGenerator:
    """A running load generator that is connected to its target."""

    def __init__(self, connection: Connection, process: psutil.Popen, log: Path) -> None:
        self.process = process
        self._connection = connection
        self._log = log

    def run(
        self,
        load: Load,
        on_progress: Callable[[int], None] = lambda _: None,
        on_ended: Callable[[], None] = lambda: None,
        max_silence_s: float | None = None,
    ) -> Outcome:
        """Runs a load and returns its records.

        on_progress: called with the number of requests that have ended. on_ended: called when the last request has ended.
        max_silence_s: maximum time in which no request ends. Raises StartError if it is exceeded or the generator dies.
        """
        self._connection.send(Run(load))
        while isinstance(message := self._receive(max_silence_s), Progress):
            on_progress(message.ended)
        _expect(message, Ended)
        on_ended()
        return _expect(self._receive(_RECORDS_S), Outcome)

    def interrupt(self) -> None:
        """Makes `run` return with the requests that have ended. May be called from a signal handler while `run` waits."""
        self._connection.send(Interrupt())

    def wait_ready(self) -> None:
        """Waits until the generator is connected to its target. Raises StartError."""
        _expect(self._receive(_CONNECT_S), Ready)

    def _receive(self, timeout_s: float | None) -> object:
        """Returns the next message. Raises StartError if none arrives in time or if the generator failed."""
        try:
            message: object = self._connection.recv() if self._connection.poll(timeout_s) else Failed(f"no message for {timeout_s:g} s")
        except (EOFError, OSError):
            message = Failed("the process has ended")
        if isinstance(message, Failed):
            raise StartError(f"load generator: {message.reason}; the end of {self._log}:\n{log_tail(self._log)}")
        return message


@contextlib.contextmanager
def load_generator(target: TargetSpec, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[LoadGenerator]:
    """Context manager that runs a load generator connected to a target. Its log is load.log in the folder.

    environment: variables in addition to those of this process. Raises StartError.
    """
    log = folder / "load.log"
    ours, theirs = socket.socketpair()
    with theirs, Connection(ours.detach()) as connection:
        command = ["-m", "neox_serve.loadgen.process", str(theirs.fileno())]
        with python_process(command, environment or {}, log, pass_fds=(theirs.fileno(),)) as process:
            theirs.close()
            connection.send(Connect(target))
            generator = LoadGenerator(connection, process, log)
            generator.wait_ready()
            yield generator
            connection.send(Stop())
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(_DISCONNECT_S)


def _expect(message: object, kind: type[M]) -> M:
    if not isinstance(message, kind):
        raise StartError(f"load generator: expected {kind.__name__}, got {message!r}")
    return message
