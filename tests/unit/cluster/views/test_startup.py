"""The start as people see it: a table that changes on a terminal, a line for every change elsewhere."""

import io
import re

import pytest
from rich.console import Console

from cluster.local.deployment import ApplicationProgress
from cluster.views.startup import StartupView

CURSOR_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROUTER_UP = ApplicationProgress("router", ready=True, failed=False, waiting_for="")


def waiting(text: str, name: str = "generation") -> ApplicationProgress:
    return ApplicationProgress(name, ready=False, failed=False, waiting_for=text)


def failed(text: str) -> ApplicationProgress:
    return ApplicationProgress("generation", ready=False, failed=True, waiting_for=text)


class Shown:
    """A view on a screen that the test reads, and the clock it goes by."""

    def __init__(self, *, terminal: bool) -> None:
        self.now_s = 100.0
        self._screen = io.StringIO()
        console = Console(file=self._screen, force_terminal=terminal, color_system=None, width=120)
        self.view = StartupView(console, clock=lambda: self.now_s)

    @property
    def lines(self) -> list[str]:
        """All lines written, without the spaces that align them."""
        text = CURSOR_CONTROL.sub("", self._screen.getvalue())
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_view_in_a_file_prints_every_change_once() -> None:
    shown = Shown(terminal=False)
    with shown.view as view:
        view.show([waiting("router: no process yet", "router"), waiting("engine: 1 starting")])
        view.show([waiting("router: no process yet", "router"), waiting("engine: 1 starting")])
        shown.now_s += 2.5
        view.show([ROUTER_UP, waiting("engine: 1 starting")])
        shown.now_s += 1.0
        view.show([ROUTER_UP, waiting("engine: 1 running")])
    assert shown.lines == [
        "router: waiting: router: no process yet",
        "generation: waiting: engine: 1 starting",
        "router: up after 2.5 s",
        "generation: waiting: engine: 1 running",
    ]


def test_view_in_a_file_prints_failures() -> None:
    shown = Shown(terminal=False)
    with shown.view as view:
        view.show([failed("no memory")])
    assert shown.lines == ["generation: failed: no memory"]


def test_view_on_a_terminal_ends_with_one_row_per_part_and_the_time() -> None:
    shown = Shown(terminal=True)
    with shown.view as view:
        view.show([waiting("router: no process yet", "router"), waiting("engine: 1 starting")])
        shown.now_s += 2.5
        view.show([ROUTER_UP, waiting("engine: 1 starting")])
        shown.now_s += 4.5
        view.show([ROUTER_UP, failed("no memory")])
    assert shown.lines[-3:] == ["up router after 2.5 s", "failed generation no memory", "7 s"]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_view_prints_brackets_unchanged(terminal: bool) -> None:
    shown = Shown(terminal=terminal)
    with shown.view as view:
        view.show([waiting("cannot read [/models/neox] or [bold]")])
    assert any("cannot read [/models/neox] or [bold]" in line for line in shown.lines)
