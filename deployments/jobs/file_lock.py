"""A lock that lets only one process at a time work in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.jobs.failures import JobError


@contextmanager
def file_lock(folder: Path, activity: str) -> Iterator[None]:
    """Holds the lock of a folder, which is created if necessary.

    Raises JobError if another process holds it; the message says that the other process is doing `activity`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"{folder}: another job is {activity}", 1) from error
        yield
