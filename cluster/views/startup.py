"""Shows how far the start is: a live table on a terminal, a line for every change elsewhere."""

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
    """What is up and what is being waited for. Use as a context manager around the start. clock: seconds, steady."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._began_s = clock()
        self._up_after_s: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, parts: list[ApplicationProgress]) -> None:
        """Shows the parts as they stand now."""
        for part in parts:
            if part.ready:
                self._up_after_s.setdefault(part.name, self._clock() - self._began_s)
        if self._live:
            self._live.update(self._table(parts))
        else:
            self._say_changes(parts)

    def _table(self, parts: list[ApplicationProgress]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for part in parts:
            state = _state(part)
            # Not markup: a message of Serve's may hold brackets.
            detail = self._after(part) if part.ready else part.waiting_for
            table.add_row(Text(state, _STYLES[state]), Text(part.name), Text(detail))
        table.add_row("", "", f"[dim]{self._clock() - self._began_s:.0f} s[/]")
        return table

    def _say_changes(self, parts: list[ApplicationProgress]) -> None:
        for part in parts:
            text = f"up {self._after(part)}" if part.ready else f"{_state(part)}: {part.waiting_for}"
            if self._said.get(part.name) != text:
                self._said[part.name] = text
                self._console.print(f"{part.name}: {text}", markup=False, highlight=False)

    def _after(self, part: ApplicationProgress) -> str:
        return f"after {self._up_after_s[part.name]:.1f} s"


def _state(part: ApplicationProgress) -> str:
    return "up" if part.ready else "failed" if part.failed else "waiting"
