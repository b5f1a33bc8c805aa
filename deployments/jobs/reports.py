"""What a run says of itself, in a file that is whole at any time: how far it is, and why it gave up."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from neox_serve.core.jobs.job import NO_REPORT, Progress, Report

_EVERY_S = 1.0


class ReportFile:
    """The file of one run. Written at most once a second, and by `flush`. clock: seconds, monotonic."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._due_s = clock()
        self._untold: Progress | None = None

    def tell(self, progress: Progress) -> None:
        """How far it is. Raises OSError."""
        self._untold = progress
        if (now_s := self._clock()) >= self._due_s:
            self._due_s = now_s + _EVERY_S
            self.flush()

    def flush(self) -> None:
        """Writes what has been told last. Raises OSError."""
        if self._untold is not None:
            self._write(Report(self._untold))
            self._untold = None

    def give_up(self, failure: str) -> None:
        """Why; how far it came stays. Raises OSError."""
        self._write(Report(read_report(self._path).progress, failure))

    def _write(self, report: Report) -> None:
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        aside.write_text(json.dumps({"progress": asdict(report.progress), "failure": report.failure}), encoding="utf-8")
        aside.replace(self._path)


def read_report(path: Path) -> Report:
    """What a run has said so far. Raises OSError, but not where there is no file; ValueError where it is no report."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Report(Progress(**values["progress"]), str(values["failure"]))
    except FileNotFoundError:
        return NO_REPORT
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no report: {error}") from error
