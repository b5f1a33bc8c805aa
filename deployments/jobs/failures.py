"""How jobs fail: with words for people, and an exit code that says whose turn it is."""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

from deployments.jobs.bulk.rows import BadRow
from deployments.jobs.files.storage import writing

_SHOWN_BAD_ROWS = 20


class JobError(Exception):
    """The job cannot go on. exit_code: 1 stopped by an error, 2 wrong arguments or input."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedBySignal(BaseException):
    """SIGINT or SIGTERM has come. Not an Exception: it must not be taken for an error of the work."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Has SIGINT and SIGTERM raise InterruptedBySignal in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise InterruptedBySignal(number)


@contextlib.contextmanager
def usable(file: str) -> Iterator[None]:
    """Raises JobError naming a file that cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise JobError(f"{file}: {error.strerror or error}", 2) from error


def settle_bad_rows(path: str, bad: Sequence[BadRow], good: int, rejects: str | None) -> None:
    """Writes bad rows of an input to a file of their own. Raises JobError naming the first of them where there is no such file."""
    if bad and rejects is None:
        raise JobError(_refusal(path, bad, good), 2)
    if rejects is not None:
        with usable(rejects), writing(rejects) as stream:
            stream.writelines(_bad_line(row) for row in bad)


def _refusal(path: str, bad: Sequence[BadRow], good: int) -> str:
    lines = [f"{path}: {len(bad)} bad rows beside {good} good ones; nothing was started (--rejects FILE runs the good ones)"]
    lines += [f"  line {row.number}: {row.problem}" for row in bad[:_SHOWN_BAD_ROWS]]
    if len(bad) > _SHOWN_BAD_ROWS:
        lines.append(f"  and {len(bad) - _SHOWN_BAD_ROWS} more")
    return "\n".join(lines)


def _bad_line(row: BadRow) -> bytes:
    return json.dumps({"row": row.number, "problem": row.problem, "line": row.line}, ensure_ascii=False).encode() + b"\n"
