"""The definition of a goal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.goal_runs import Runs


@dataclass(frozen=True, slots=True)
class Goal:
    """A measured value and its target."""

    id: str
    """Unique name, with the subject before the dot."""
    measures: str
    """Description of the value and its unit."""
    op: str
    """The required relation to the target, one of `goals.OPERATORS`."""
    target: float
    """The target value."""
    measure: "Callable[[Runs], float]"
    """Measures the value. It may raise any exception if the value cannot be measured."""
