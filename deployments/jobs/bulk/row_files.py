"""The output of bulk work: lines of JSON are collected beside it, and it is published once all rows are complete."""

import os
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deployments.jobs.bulk.rows import CompletedRows, Kind, read_completed
from deployments.jobs.files.formats import write_output
from deployments.jobs.files.storage import files_in, is_remote, put, reading, remove, writing

_FSYNC_EVERY_ROWS = 64
_PART_ROWS, _PART_S = 512, 10.0


def partial_of(output: str) -> str:
    """Returns where the lines of an unfinished output are: a file or, at a URL, a folder of parts."""
    return f"{output}.partial"


class Output(ABC):
    """An output to which lines are appended. Use it as a context manager. All methods raise OSError."""

    completed: CompletedRows
    """The rows that were complete when the output was opened."""

    def __init__(self, kind: Kind, file: str) -> None:
        self._kind = kind
        self._file = file

    @abstractmethod
    def __enter__(self) -> Self:
        """Opens the output. Raises BlockingIOError if another process has it open."""

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stores the lines that are not stored yet."""

    @abstractmethod
    def append(self, line: bytes) -> None:
        """Appends a line. A crash loses at most the lines that are not stored yet; a line that is cut short is noticed."""

    @abstractmethod
    def publish(self) -> None:
        """Writes the output file, in the order of the input. After a crash it is either unchanged or complete."""

    def _write_output(self, descriptor: int, completed: CompletedRows) -> None:
        """Writes the output file from the lines in an open file."""
        lines = (os.pread(descriptor, line.length, line.offset) for _, line in sorted(completed.positions.items()))
        with writing(self._file) as stream:
            write_output(self._kind, self._file, lines, stream)


def output_of(kind: Kind, file: str) -> Output:
    """Returns the output for a path or a URL. Nothing is opened yet."""
    return RemoteOutput(kind, file) if is_remote(file) else LocalOutput(kind, file)


class LocalOutput(Output):
    """An output in a local file. Lines are synced to disk after every 64 rows and at the end.

    Opening it removes a line that a crash cut short.
    """

    def __init__(self, kind: Kind, file: str) -> None:
        super().__init__(kind, file)
        self._partial = Path(partial_of(file))
        self._unsynced = 0
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Opens and locks the file. Raises BlockingIOError if another process has locked it."""
        import fcntl

        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._require_unchanged()
            self.completed = self._read()
            os.ftruncate(self._descriptor, self.completed.valid_bytes)
        except OSError:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stores the lines that are not stored yet. Removes the file if it is empty."""
        self._sync()
        if not os.fstat(self._descriptor).st_size:
            self._partial.unlink(missing_ok=True)
        os.close(self._descriptor)

    def append(self, line: bytes) -> None:
        """Appends a line, with a single write if the disk accepts all of it."""
        written = os.write(self._descriptor, line)
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        self._unsynced += 1
        if self._unsynced >= _FSYNC_EVERY_ROWS:
            self._sync()

    def publish(self) -> None:
        """Writes the output file, then removes the file of lines."""
        self._sync()
        self._write_output(self._descriptor, self._read())
        self._partial.unlink()

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._descriptor)
            self._unsynced = 0

    def _require_unchanged(self) -> None:
        """Raises BlockingIOError if another process published or removed the file after it was opened here and before it was locked."""
        try:
            same = os.path.samestat(os.fstat(self._descriptor), self._partial.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise BlockingIOError(f"{self._partial} has just been finished")

    def _read(self) -> CompletedRows:
        with self._partial.open("rb") as file:
            return read_completed(file)


class RemoteOutput(Output):
    """An output at a URL. Lines are stored in parts after every 512 rows or 10 s and at the end.

    Parts are files of their own, since object stores cannot append. All lines are also kept in a temporary file on this machine.
    """

    def __init__(self, kind: Kind, file: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        super().__init__(kind, file)
        self._clock = clock
        self._local: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._unstored: list[bytes] = []
        self._stored_s = clock()
        self._parts = 0
        # Parts are read back in the order of their names, so those of later runs must come later.
        self._run = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> Self:
        """Reads the parts of earlier runs."""
        for part in files_in(partial_of(self._file)):
            with reading(part) as stream:
                self._local.write(stream.read())
        self.completed = self._read()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stores the lines that are not stored yet."""
        try:
            self._store_part()
        finally:
            self._local.close()

    def append(self, line: bytes) -> None:
        """Appends a line to the current part."""
        self._local.write(line)
        self._unstored.append(line)
        if len(self._unstored) >= _PART_ROWS or self._clock() - self._stored_s >= _PART_S:
            self._store_part()

    def publish(self) -> None:
        """Writes the output file, then removes the parts."""
        self._store_part()
        self._write_output(self._local.fileno(), self._read())
        remove(partial_of(self._file))

    def _store_part(self) -> None:
        if self._unstored:
            put(f"{partial_of(self._file)}/{self._run}-{self._parts:06}", b"".join(self._unstored))
            self._parts += 1
            self._unstored.clear()
        self._stored_s = self._clock()

    def _read(self) -> CompletedRows:
        self._local.flush()
        self._local.seek(0)
        completed = read_completed(self._local)
        self._local.seek(0, os.SEEK_END)
        return completed
