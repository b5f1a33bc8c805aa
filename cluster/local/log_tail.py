"""Reads the log lines of the cluster's processes from the files that Ray redirects them to, one per process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PATTERN = "worker-*.err"
_POLL_S = 0.3


class LogTail:
    """Reads new complete lines of all processes, including processes that start later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}

    def read(self) -> Iterator[str]:
        """Yields the lines since the last call, file by file, without line ends. An incomplete last line is left for the next call."""
        for path in sorted(self._folder.glob(_PATTERN)):
            with path.open("rb") as file:
                file.seek(self._read_bytes.get(path, 0))
                text = file.read()
            complete = text[: text.rfind(b"\n") + 1]
            self._read_bytes[path] = self._read_bytes.get(path, 0) + len(complete)
            yield from complete.decode(errors="replace").splitlines()


def follow(tail: LogTail, wanted: Callable[[str], bool], show: Callable[[str], None], *, forever: bool) -> None:
    """Calls `show` with each line for which `wanted` returns true; with `forever`, until interrupted."""
    while True:
        for line in tail.read():
            if wanted(line):
                show(line)
        if not forever:
            return
        time.sleep(_POLL_S)
