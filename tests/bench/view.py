"""Output of a benchmark on stderr: the current step, its progress, and tables of results at the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.machine import BUSY_FRACTION

_WIDTH_WITHOUT_TERMINAL = 160


class View:
    """Progress and tables on one console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _stderr()
        self._plain = not self.console.is_terminal

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Prints the name of a step when it begins."""
        self._log(what)
        yield

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows a progress bar during the block. The yielded function takes the completed amount. Without a terminal, prints a line at the
        end."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=self._plain) as bars:
            task = bars.add_task(what, total=total)
            yield lambda done: bars.update(task, completed=done)
        self._log(f"{what}: done")

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table. All columns except the first contain numbers."""
        table = Table(title=title, title_justify="left")
        for number, header in enumerate(headers):
            table.add_column(header, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, highlight=False)

    def warn_if_busy(self, busy_before: float) -> None:
        """Prints a warning if the machine was not idle. `busy_before` is the CPU usage before the start, from 0 to 1."""
        if busy_before > BUSY_FRACTION:
            self.say(f"[bold red]{busy_before:.0%} of the CPU was in use before the start; these results are not reliable.[/]")

    def _log(self, text: str) -> None:
        self.console.print(f"{datetime.now():%H:%M:%S}  {text}", highlight=False)


def _stderr() -> Console:
    """Returns a console on stderr that is wide enough for the tables if there is no terminal."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=_WIDTH_WITHOUT_TERMINAL)
