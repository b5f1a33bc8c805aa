"""How runs fail: with a message for people and an exit code that says whether the arguments or the environment is at fault."""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

from deployments.jobs.bulk.rows import BadRow
from deployments.jobs.files.storage import writing

_MAX_SHOWN_BAD_ROWS = 20


class JobError(Exception):
    """The run cannot continue."""

    def __init__(self, message: str, exit_code: int) -> None:
        """`exit_code` is 1 if the run was stopped by an error, and 2 for wrong arguments or input."""
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedBySignal(BaseException):
    """SIGINT or SIGTERM arrived. This is not an Exception, so that it is never mistaken for an error of the work."""

    def __init__(self, number: int) -> None:
        """`number` is the number of the signal."""
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise InterruptedBySignal in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise InterruptedBySignal(number)


@contextlib.contextmanager
def usable(file: str) -> Iterator[None]:
    """Turns an OSError in the block into a JobError that names the file."""
    try:
        yield
    except OSError as error:
        raise JobError(f"{file}: {error.strerror or error}", 2) from error


def reject_bad_rows(path: str, bad: Sequence[BadRow], good: int, rejects: str) -> None:
    """Writes the bad rows of the input at `path` to the file `rejects`.

    Raises JobError that lists the first bad rows if there are any and `rejects` is empty. `good` is the number of good rows.
    """
    if bad and not rejects:
        raise JobError(_refusal(path, bad, good), 2)
    if rejects:
        with usable(rejects), writing(rejects) as stream:
            stream.writelines(_bad_line(row) for row in bad)


def _refusal(path: str, bad: Sequence[BadRow], good: int) -> str:
    lines = [f"{path}: {len(bad)} bad and {good} good rows; nothing was started (--rejects FILE runs the good ones)"]
    lines += [f"  line {row.number}: {row.problem}" for row in bad[:_MAX_SHOWN_BAD_ROWS]]
    if len(bad) > _MAX_SHOWN_BAD_ROWS:
        lines.append(f"  and {len(bad) - _MAX_SHOWN_BAD_ROWS} more")
    return "\n".join(lines)


def _bad_line(row: BadRow) -> bytes:
    return json.dumps({"row": row.number, "problem": row.problem, "line": row.line}, ensure_ascii=False).encode() + b"\n"
