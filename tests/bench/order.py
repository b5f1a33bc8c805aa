"""In which order systems are measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visit:
    """A system started once, and the rounds measured before it is stopped."""

    system: str
    rounds: tuple[int, ...]


def alternating(systems: Sequence[str], rounds: int) -> list[Visit]:
    """A B, B A, A B, ...: each round runs all systems, in the opposite order of the round before, so that drift favours none.

    Neighbouring rounds of one system share its processes, which halves the starts.
    """
    visits: list[Visit] = []
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            if visits and visits[-1].system == system:
                visits[-1] = Visit(system, (*visits[-1].rounds, number))
            else:
                visits.append(Visit(system, (number,)))
    return visits
