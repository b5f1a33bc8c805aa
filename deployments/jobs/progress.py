"""Shows how far a run is: a bar on a terminal, and otherwise (for example in the log of a job) a line every few seconds."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from neox_serve.core.jobs.job import Progress


class JobProgress:
    """Counts the rows that are complete, and shows and reports the counts. Use it as a context manager."""

    def __init__(
        self,
        console: Console,
        total: int,
        done: int,
        *,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[Progress], None] | None = None,
        errors: int = 0,
        noun: str = "rows",
    ) -> None:
        """Starts at `done` complete rows of `total`, of which `errors` have an error.

        `report` is called with every change. `noun` is what is counted. `clock` returns monotonic seconds.
        """
        self._console, self._interval_s, self._clock, self._report = console, interval_s, clock, report
        self._noun = noun
        self.total, self.done, self.errors, self.tokens, self.prompt_tokens = total, done, errors, 0, 0
        self._done_before = done
        self._rates_since_s = self._printed_s = clock()
        self._bar = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=done) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            self._print()
        self._report_counts()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._print()

    def restart_rates(self) -> None:
        """Computes rates from now on; the time until now was preparation."""
        self._rates_since_s = self._clock()

    def add_expected(self, rows: int) -> None:
        """Adds rows to the total."""
        self.total += rows
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=self.total)
        self._report_counts()

    def complete_row(self, *, tokens: int, error: bool, prompt_tokens: int = 0) -> None:
        """Counts one complete row, for which `tokens` were used (if it generates text: generated) and `prompt_tokens` were read."""
        self.errors += error
        self.prompt_tokens += prompt_tokens
        self.update(self.done + 1, tokens=self.tokens + tokens)

    def update(self, done: int, *, tokens: int) -> None:
        """Sets the number of complete rows and of tokens, including those from before."""
        self.done, self.tokens = done, tokens
        self._report_counts()
        now_s = self._clock()
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, description=self._rates(now_s))
        elif now_s - self._printed_s >= self._interval_s:
            self._print()

    def line(self, now_s: float) -> str:
        """Returns rows, rates and remaining time as a line of text."""
        left = self.total - self.done
        rate = self._rows_per_s(now_s)
        time_left = f", {duration(left / rate)} left" if rate and left else ""
        errors = f", {self.errors} with an error" if self.errors else ""
        return f"{self.done:,} of {self.total:,} {self._noun}, {self._rates(now_s)}{time_left}{errors}"

    def _report_counts(self) -> None:
        if self._report:
            self._report(Progress(self.total, self.done, self.errors, self.tokens, self.prompt_tokens))

    def _print(self) -> None:
        self._printed_s = self._clock()
        self._console.print(self.line(self._printed_s), markup=False, highlight=False)

    def _rates(self, now_s: float) -> str:
        elapsed_s = now_s - self._rates_since_s
        return f"{self._rows_per_s(now_s):,.1f} {self._noun}/s, {self.tokens / elapsed_s if elapsed_s else 0:,.0f} tok/s"

    def _rows_per_s(self, now_s: float) -> float:
        elapsed_s = now_s - self._rates_since_s
        return (self.done - self._done_before) / elapsed_s if elapsed_s else 0.0


def duration(seconds: float) -> str:
    """Returns a duration as hours:minutes:seconds."""
    total = round(seconds)
    return f"{total // 3600}:{total % 3600 // 60:02}:{total % 60:02}"


def _bar(console: Console) -> Bar:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console)
