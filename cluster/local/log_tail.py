"""Reads the log lines that the cluster's processes write, from the files that Ray keeps them in, one for each process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PATTERN = "worker-*.err"
_POLL_S = 0.3


class LogTail:
    """New whole lines of all processes since the last reading. Processes that start later are found too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}

    def read(self) -> Iterator[str]:
        """Lines, without their ends, of one file after the other; an unfinished last line waits for the next reading."""
        for path in sorted(self._folder.glob(_PATTERN)):
            with path.open("rb") as file:
                file.seek(self._read_bytes.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read_bytes[path] = self._read_bytes.get(path, 0) + len(whole)
            yield from whole.decode(errors="replace").splitlines()


def follow(tail: LogTail, wanted: Callable[[str], bool], show: Callable[[str], None], *, forever: bool) -> None:
    """Shows the lines that are wanted; goes on until interrupted where `forever`."""
    while True:
        for line in tail.read():
            if wanted(line):
                show(line)
        if not forever:
            return
        time.sleep(_POLL_S)
