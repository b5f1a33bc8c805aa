"""One process at a time makes a thing."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.jobs.failures import JobError


@contextmanager
def file_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of a folder, which is made. Raises JobError where another process has it, saying that it does `what`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"{folder}: another job is {what}", 1) from error
        yield
