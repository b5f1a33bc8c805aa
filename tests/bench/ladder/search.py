"""The highest load that is still carried, found by raising it step by step."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Load = TypeVar("Load")
Measured = TypeVar("Measured")

_ATTEMPTS = 2
"""A level counts as not carried when it fails this often in a row: one failure may be the machine's."""


def highest_carried(loads: Iterable[Load], measure: Callable[[Load], Measured], carried: Callable[[Measured], bool]) -> Measured | None:
    """Measures loads, lowest first, until one is not carried; returns the last that was. None: not even the first."""
    highest: Measured | None = None
    for load in loads:
        attempts = (measure(load) for _ in range(_ATTEMPTS))
        good = next((measured for measured in attempts if carried(measured)), None)
        if good is None:
            break
        highest = good
    return highest
