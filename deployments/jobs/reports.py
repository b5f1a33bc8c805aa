"""The report file of a run: how far the run is, and why it gave up. A reader always sees a complete report."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from neox_serve.core.jobs.job import NO_REPORT, Progress, Report

_INTERVAL_S = 1.0


class ReportFile:
    """Writes the report of one run, at most once a second. All methods raise OSError."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        self._path = path
        self._clock = clock
        self._due_s = clock()
        self._unwritten: Progress | None = None

    def record(self, progress: Progress) -> None:
        """Records how far the run is. It is written within a second, or by `flush`."""
        self._unwritten = progress
        if (now_s := self._clock()) >= self._due_s:
            self._due_s = now_s + _INTERVAL_S
            self.flush()

    def flush(self) -> None:
        """Writes the progress that was recorded last."""
        if self._unwritten is not None:
            self._write(Report(self._unwritten))
            self._unwritten = None

    def record_failure(self, failure: str) -> None:
        """Writes why the run gave up, and keeps the progress."""
        self._write(Report(read_report(self._path).progress, failure))

    def _write(self, report: Report) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"progress": asdict(report.progress), "failure": report.failure}), encoding="utf-8")
        temporary.replace(self._path)


def read_report(path: Path) -> Report:
    """Returns the report of a run; an empty one if there is no file. Raises OSError, or ValueError if the file is not a report."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Report(Progress(**values["progress"]), str(values["failure"]))
    except FileNotFoundError:
        return NO_REPORT
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report: {error}") from error
