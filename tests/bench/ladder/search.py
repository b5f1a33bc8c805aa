"""Search for the highest load that a system sustains, by increasing it step by step."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Load = TypeVar("Load")
Measured = TypeVar("Measured")

_ATTEMPTS = 2
"""Number of failures in a row after which a load counts as not sustained. A single failure may be caused by the machine."""


def highest_carried(loads: Iterable[Load], measure: Callable[[Load], Measured], carried: Callable[[Measured], bool]) -> Measured | None:
    """Measures loads in ascending order until one is not sustained, and returns the result of the last sustained one, or None."""
    highest: Measured | None = None
    for load in loads:
        attempts = (measure(load) for _ in range(_ATTEMPTS))
        good = next((measured for measured in attempts if carried(measured)), None)
        if good is None:
            break
        highest = good
    return highest
