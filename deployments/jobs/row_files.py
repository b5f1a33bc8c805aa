"""The files of bulk work: the input read twice, the output written beside its place and put there once it is whole."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from deployments.jobs.rows import BadRow, Kind, Ledger, Row, read_ledger, read_rows

_FSYNC_EVERY_ROWS = 64


def input_rows(kind: Kind, path: Path) -> Iterator[Row | BadRow]:
    """The rows of the input file, one at a time. Raises OSError."""
    with path.open("rb") as file:
        yield from read_rows(kind, file)


def partial_path(output: Path) -> Path:
    """Where an output grows until it is whole."""
    return output.with_name(f"{output.name}.partial")


class OutputFile:
    """The output: whole lines appended, each by one write; on disk at the latest after 64 rows, at `sync` and at the end.

    It grows beside its place and is put there, as a whole and in order, by `publish`. Opened where it has been published before, it goes on
    from a copy. Opening cuts off what a crash tore. One process at a time: a second one gets BlockingIOError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_path(path)
        self._unsynced = 0
        self._descriptor = -1
        self._needed = True

    def __enter__(self) -> Self:
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._require_still_there()
            self._needed = os.fstat(self._descriptor).st_size > 0
            if not self._needed and self._path.exists():
                shutil.copyfile(self._path, self._partial)
        except OSError:
            os.close(self._descriptor)
            raise
        self.ledger = self._read()
        os.ftruncate(self._descriptor, self.ledger.whole_bytes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.sync()
        if not self._needed:
            self._partial.unlink(missing_ok=True)
        os.close(self._descriptor)

    def append(self, line: bytes) -> None:
        """Adds a line; a crash from here on loses at most what the disk has not got yet, never half of it unnoticed."""
        self._needed = True
        written = os.write(self._descriptor, line)
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        self._unsynced += 1
        if self._unsynced >= _FSYNC_EVERY_ROWS:
            self.sync()

    def sync(self) -> None:
        """Waits until the disk has all lines."""
        if self._unsynced:
            os.fsync(self._descriptor)
            self._unsynced = 0

    def publish(self) -> None:
        """Puts the lines in their place, in the input's order. A crash leaves there what was there before, or all of them."""
        self.sync()
        ledger = self._read()
        whole = self._partial if ledger.in_order else self._in_order(ledger)
        whole.replace(self._path)
        self._needed = False

    def _in_order(self, ledger: Ledger) -> Path:
        aside = self._path.with_name(f"{self._path.name}.ordered")
        with aside.open("wb") as file:
            for _, place in sorted(ledger.places.items()):
                file.write(os.pread(self._descriptor, place.length, place.offset))
            file.flush()
            os.fsync(file.fileno())
        return aside

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
