"""The order in which systems are measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visit:
    """One start of a system."""

    system: str
    """Name of the system."""
    rounds: tuple[int, ...]
    """Rounds that are measured before it is stopped."""


def alternating(systems: Sequence[str], rounds: int) -> list[Visit]:
    """Returns the visits in the order A B, B A, A B, and so on.

    Each round measures all systems in the reverse order of the previous round, so that drift of the machine favours none of them.
    Consecutive rounds of the same system share its processes, which halves the number of starts.
    """
    visits: list[Visit] = []
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            if visits and visits[-1].system == system:
                visits[-1] = Visit(system, (*visits[-1].rounds, number))
            else:
                visits.append(Visit(system, (number,)))
    return visits
