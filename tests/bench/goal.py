"""What a goal is: a figure that must hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.goal_runs import Runs


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that must hold. measures: for people. op: of goals.OPERATORS. measure: gets the figure, raising where it cannot be had."""

    id: str
    measures: str
    op: str
    target: float
    measure: "Callable[[Runs], float]"
