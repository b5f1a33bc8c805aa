"""The output of bulk work: it grows beside its place as lines of JSON, and is put there once it is whole."""

import os
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deployments.jobs.bulk.rows import Kind, Ledger, read_ledger
from deployments.jobs.files.formats import write_output
from deployments.jobs.files.storage import files_in, is_remote, put, reading, remove, writing

_FSYNC_EVERY_ROWS = 64
_PART_ROWS, _PART_S = 512, 10.0


def partial_of(output: str) -> str:
    """Where an output grows until it is whole: a file, or at a URL a folder of parts."""
    return f"{output}.partial"


class Output(ABC):
    """Whole lines, appended. A context manager; `ledger` is what it held when it was opened. All raise OSError."""

    ledger: Ledger

    def __init__(self, kind: Kind, file: str) -> None:
        self._kind = kind
        self._file = file

    @abstractmethod
    def __enter__(self) -> Self:
        """Opens it. Raises BlockingIOError where another process has it open."""

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Keeps what it holds."""

    @abstractmethod
    def append(self, line: bytes) -> None:
        """Adds a line; a crash from here on loses at most what is not kept yet, never half of it unnoticed."""

    @abstractmethod
    def publish(self) -> None:
        """Puts the lines in their place, in the input's order. A crash leaves there what was there before, or all of them."""

    def _write_whole(self, descriptor: int, ledger: Ledger) -> None:
        """descriptor: of the file of lines that the ledger is of."""
        lines = (os.pread(descriptor, place.length, place.offset) for _, place in sorted(ledger.places.items()))
        with writing(self._file) as stream:
            write_output(self._kind, self._file, lines, stream)


def output_of(kind: Kind, file: str) -> Output:
    """The output that is to be at a path, or a URL."""
    return RemoteOutput(kind, file) if is_remote(file) else LocalOutput(kind, file)


class LocalOutput(Output):
    """A file's lines are on disk at the latest after 64 rows and at the end. Opening cuts off what a crash tore."""

    def __init__(self, kind: Kind, file: str) -> None:
        super().__init__(kind, file)
        self._partial = Path(partial_of(file))
        self._unsynced = 0
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Opens it."""
        import fcntl

        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._require_still_there()
            self.ledger = self._read()
            os.ftruncate(self._descriptor, self.ledger.whole_bytes)
        except OSError:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Keeps what it holds; nothing is left of nothing."""
        self._sync()
        if not os.fstat(self._descriptor).st_size:
            self._partial.unlink(missing_ok=True)
        os.close(self._descriptor)

    def append(self, line: bytes) -> None:
        """Adds a line, by one write where the disk takes it."""
        written = os.write(self._descriptor, line)
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        self._unsynced += 1
        if self._unsynced >= _FSYNC_EVERY_ROWS:
            self._sync()

    def publish(self) -> None:
        """Writes the whole file, then takes its beginnings away."""
        self._sync()
        self._write_whole(self._descriptor, self._read())
        self._partial.unlink()

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._descriptor)
            self._unsynced = 0

    def _require_still_there(self) -> None:
        """Whoever had it before may have published it, or taken it away, between its opening here and its lock."""
        try:
            same = os.path.samestat(os.fstat(self._descriptor), self._partial.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise BlockingIOError(f"{self._partial} has just been finished")

    def _read(self) -> Ledger:
        with self._partial.open("rb") as file:
            return read_ledger(file)


class RemoteOutput(Output):
    """Lines are kept in parts, files of their own since a store cannot append: at the latest after 512 rows or 10 s, and at the end.

    Meanwhile all lines are in a file of this machine's too. clock: seconds, monotonic.
    """

    def __init__(self, kind: Kind, file: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(kind, file)
        self._clock = clock
        self._here: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of its own block
        self._unkept: list[bytes] = []
        self._kept_s = clock()
        self._parts = 0
        # Parts are read back by name: those of later runs come later.
        self._run = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> Self:
        """Reads the parts."""
        for part in files_in(partial_of(self._file)):
            with reading(part) as stream:
                self._here.write(stream.read())
        self.ledger = self._read()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Keeps what it holds."""
        try:
            self._keep()
        finally:
            self._here.close()

    def append(self, line: bytes) -> None:
        """Adds a line to the part that is being filled."""
        self._here.write(line)
        self._unkept.append(line)
        if len(self._unkept) >= _PART_ROWS or self._clock() - self._kept_s >= _PART_S:
            self._keep()

    def publish(self) -> None:
        """Writes the whole file, then takes its parts away."""
        self._keep()
        self._write_whole(self._here.fileno(), self._read())
        remove(partial_of(self._file))

    def _keep(self) -> None:
        if self._unkept:
            put(f"{partial_of(self._file)}/{self._run}-{self._parts:06}", b"".join(self._unkept))
            self._parts += 1
            self._unkept.clear()
        self._kept_s = self._clock()

    def _read(self) -> Ledger:
        self._here.flush()
        self._here.seek(0)
        ledger = read_ledger(self._here)
        self._here.seek(0, os.SEEK_END)
        return ledger
