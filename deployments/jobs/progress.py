"""How far a job is: a bar on a terminal, a line now and then elsewhere (a job's log, say)."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from neox_serve.core.jobs.job import Progress


class JobProgress:
    """Counts settled rows. Use as a context manager. done, errors: those from before. clock: seconds, monotonic. report: told of them.

    noun: what is counted.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        done: int,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[Progress], None] | None = None,
        errors: int = 0,
        noun: str = "rows",
    ) -> None:
        self._console, self._every_s, self._clock, self._report = console, every_s, clock, report
        self._noun = noun
        self.total, self.done, self.errors, self.tokens, self.prompt_tokens = total, done, errors, 0, 0
        self._done_before = done
        self._began_s = self._said_s = clock()
        self._bar = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=done) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            self._say()
        self._tell()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._say()

    def count_from_now(self) -> None:
        """Rates are of what is settled from here on: what came before was preparation."""
        self._began_s = self._clock()

    def expect(self, more: int) -> None:
        """So many rows more than were known of."""
        self.total += more
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=self.total)
        self._tell()

    def settled(self, *, tokens: int, error: bool, prompt_tokens: int = 0) -> None:
        """A row more. tokens: generated for it. prompt_tokens: read."""
        self.errors += error
        self.prompt_tokens += prompt_tokens
        self.reached(self.done + 1, tokens=self.tokens + tokens)

    def reached(self, done: int, *, tokens: int) -> None:
        """So many rows, and tokens for them, with those from before."""
        self.done, self.tokens = done, tokens
        self._tell()
        now_s = self._clock()
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, description=self._rates(now_s))
        elif now_s - self._said_s >= self._every_s:
            self._say()

    def line(self, now_s: float) -> str:
        """Rows, rates and time left, in words."""
        left = self.total - self.done
        rate = self._rows_per_s(now_s)
        time_left = f", {duration(left / rate)} left" if rate and left else ""
        errors = f", {self.errors} with an error" if self.errors else ""
        return f"{self.done:,} of {self.total:,} {self._noun}, {self._rates(now_s)}{time_left}{errors}"

    def _tell(self) -> None:
        if self._report:
            self._report(Progress(self.total, self.done, self.errors, self.tokens, self.prompt_tokens))

    def _say(self) -> None:
        self._said_s = self._clock()
        self._console.print(self.line(self._said_s), markup=False, highlight=False)

    def _rates(self, now_s: float) -> str:
        elapsed_s = now_s - self._began_s
        return f"{self._rows_per_s(now_s):,.1f} {self._noun}/s, {self.tokens / elapsed_s if elapsed_s else 0:,.0f} tok/s"

    def _rows_per_s(self, now_s: float) -> float:
        elapsed_s = now_s - self._began_s
        return (self.done - self._done_before) / elapsed_s if elapsed_s else 0.0


def duration(seconds: float) -> str:
    """hours:minutes:seconds."""
    total = round(seconds)
    return f"{total // 3600}:{total % 3600 // 60:02}:{total % 60:02}"


def _bar(console: Console) -> Bar:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console)
