"""The files of bulk work: the input read twice, the output appended to and put in order at the end."""

import os
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


class OutputFile:
    """The output: whole lines appended, each by one write; on disk at the latest after 64 rows, at `sync` and at the end.

    Opening it cuts off what a crash tore. One process at a time: a second one gets BlockingIOError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unsynced = 0
        self._descriptor = -1

    def __enter__(self) -> Self:
        import fcntl

        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.ledger = self._read()
        os.ftruncate(self._descriptor, self.ledger.whole_bytes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.sync()
        os.close(self._descriptor)

    def append(self, line: bytes) -> None:
        """Adds a line; a crash from here on loses at most what the disk has not got yet, never half of it unnoticed."""
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

    def put_in_order(self) -> None:
        """Brings the lines into the input's order. The file is replaced as a whole: a crash leaves the old one or the new one."""
        self.sync()
        ledger = self._read()
        if ledger.in_order:
            return
        aside = self._path.with_name(f"{self._path.name}.ordered")
        with aside.open("wb") as file:
            for _, place in sorted(ledger.places.items()):
                file.write(os.pread(self._descriptor, place.length, place.offset))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)

    def _read(self) -> Ledger:
        with self._path.open("rb") as file:
            return read_ledger(file)
