"""Shows the progress of a start: a live table on a terminal, otherwise one line per change."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.local.deployment import ApplicationProgress

_STYLES = {"up": "green", "failed": "red", "waiting": "yellow"}


class StartupView:
    """The parts that are up and what the others wait for. Use it as a context manager around the start."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start_s = clock()
        self._up_after_s: dict[str, float] = {}
        self._printed: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, parts: list[ApplicationProgress]) -> None:
        """Shows the current state of the parts."""
        for part in parts:
            if part.ready:
                self._up_after_s.setdefault(part.name, self._clock() - self._start_s)
        if self._live:
            self._live.update(self._table(parts))
        else:
            self._print_changes(parts)

    def _table(self, parts: list[ApplicationProgress]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for part in parts:
            state = _state(part)
            # Text, not markup: a message of Ray Serve may contain brackets.
            detail = self._after(part) if part.ready else part.waiting_for
            table.add_row(Text(state, _STYLES[state]), Text(part.name), Text(detail))
        table.add_row("", "", f"[dim]{self._clock() - self._start_s:.0f} s[/]")
        return table

    def _print_changes(self, parts: list[ApplicationProgress]) -> None:
        for part in parts:
            text = f"up {self._after(part)}" if part.ready else f"{_state(part)}: {part.waiting_for}"
            if self._printed.get(part.name) != text:
                self._printed[part.name] = text
                self._console.print(f"{part.name}: {text}", markup=False, highlight=False)

    def _after(self, part: ApplicationProgress) -> str:
        return f"after {self._up_after_s[part.name]:.1f} s"


def _state(part: ApplicationProgress) -> str:
    return "up" if part.ready else "failed" if part.failed else "waiting"
