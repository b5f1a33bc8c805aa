"""Shows batch jobs: a bar while a job is watched in a terminal, lines elsewhere, and tables of many jobs."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from neox_serve.cli.views.status import age
from neox_serve.client import BatchJob, JobLog, JobState

_INTERVAL_S = 5.0


def follow(jobs: Iterable[BatchJob], console: Console, clock: Callable[[], float] = time.monotonic) -> BatchJob | None:
    """Shows a job as it changes and returns its last state; None if there was none. `clock` returns monotonic seconds."""
    rate, last, printed_s = Rate(), None, -_INTERVAL_S
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        for job in jobs:
            now_s = clock()
            line = rate.describe(job, now_s)
            bar.update(task, total=job.total_rows or None, completed=job.completed_rows, description=line)
            if not console.is_terminal and (now_s - printed_s >= _INTERVAL_S or last is None or job.state is not last.state):
                console.print(line, markup=False, highlight=False)
                printed_s = now_s
            last = job
    return last


class Rate:
    """Measures the rows per second of a job while it is watched, and the remaining time at this rate."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None

    def describe(self, job: BatchJob, now_s: float) -> str:
        """Returns state, rows, rate and remaining time as text. `now_s` is in monotonic seconds."""
        if job.state is JobState.RUNNING and job.total_rows and self._began is None:
            self._began = now_s, job.completed_rows
        rows = f", {job.completed_rows:,} of {job.total_rows:,} {counted(job)}" if job.total_rows else ""
        errors = f", {job.error_rows:,} with an error" if job.error_rows else ""
        return f"{job.state.lower()}{rows}{self._rate(job, now_s)}{errors}{f': {job.message}' if job.message else ''}"

    def _rate(self, job: BatchJob, now_s: float) -> str:
        if self._began is None or job.state.ended:
            return ""
        began_s, completed = self._began
        done, seconds = job.completed_rows - completed, now_s - began_s
        if not done or seconds <= 0:
            return ""
        return f", {done / seconds:,.1f} {counted(job)}/s, {age((job.total_rows - job.completed_rows) * seconds / done)} left"


def table(jobs: Sequence[BatchJob], now_s: float) -> Table:
    """Returns a table of jobs, in the given order. `now_s` is in seconds since the epoch."""
    table = Table("job", "kind", "state", "rows", "errors", "ran", "output", "message", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for job in jobs:
        rows = f"{job.completed_rows:,}/{job.total_rows:,}" if job.total_rows else ""
        table.add_row(job.job_id, job.kind, job.state.lower(), rows, str(job.error_rows), ran(job, now_s), job.output, job.message)
    return table


def lines(job: BatchJob, now_s: float) -> list[str]:
    """Returns all details of a job as lines. `now_s` is in seconds since the epoch."""
    created = datetime.fromtimestamp(job.created_s).astimezone().isoformat(sep=" ", timespec="seconds")
    rows = (
        f"{job.completed_rows:,} of {job.total_rows:,} {counted(job)}, {job.error_rows:,} with an error"
        if job.total_rows
        else f"{counted(job)} not yet counted"
    )
    return [
        f"{job.job_id}: {job.state.lower()}" + (f": {job.message}" if job.message else ""),
        f"  {job.kind}: {job.input} -> {job.output}",
        f"  {rows}; {ran(job, now_s)}" + (f"; run {job.run_id}" if job.run_id else ""),
        f"  created {created}" + (f", request_id {job.request_id}" if job.request_id else ""),
    ]


class LogReader:
    """Finds the part of a growing log that has not been shown yet. If another run has started, this is its whole log."""

    def __init__(self) -> None:
        self._run_id, self._seen = "", 0

    def unread(self, log: JobLog) -> str:
        """Returns the new part of a log. If characters are missing before it, a line says how many precede it."""
        if log.run_id != self._run_id:
            self._run_id, self._seen = log.run_id, 0
        missing = log.start > self._seen
        text = log.text[max(0, self._seen - log.start) :]
        self._seen = max(self._seen, log.start + len(log.text))
        return f"[{log.start:,} earlier characters are not shown]\n{text}" if missing else text


def counted(job: BatchJob) -> str:
    """Returns what the progress of a job counts."""
    return {"finetune": "examples", "evaluate": "questions", "quantize": "matrices"}.get(job.kind, "rows")


def ran(job: BatchJob, now_s: float) -> str:
    """Returns how long a job has run, as text. `now_s` is in seconds since the epoch."""
    return "not started" if job.started_s is None else age((job.ended_s or now_s) - job.started_s)
