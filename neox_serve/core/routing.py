"""Which replica takes a request: filter, score, pick. Pure functions; the same policy serves the router and a gateway without one.

The policy: of two replicas drawn at random, the one with fewer outstanding tokens. Outstanding means dispatched and not ended, so a
dispatch counts at once, not only when the replica's next load report comes. Two random choices balance well and do not herd.
Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random

from neox_serve.core.cluster import Demand, Outstanding, Replica, ReplicaPhase


class Shortage(Enum):
    """Why no replica takes a request."""

    UNKNOWN_MODEL = auto()  # replicas there are, but none of any pool has this model
    NOT_READY = auto()  # none is ready that has not already failed the request
    FULL = auto()  # those that are ready have all the requests they take


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica, what it has been given, and whether it can be reached now."""

    replica: Replica
    outstanding: Outstanding
    reachable: bool = True


def choose(candidates: Sequence[Candidate], demand: Demand, rng: Random) -> Replica | Shortage:
    """The replica for a request, or why there is none."""
    if candidates and all(candidate.replica.model != demand.model for candidate in candidates):
        return Shortage.UNKNOWN_MODEL
    ready = [candidate for candidate in candidates if is_ready_for(candidate, demand)]
    free = [candidate for candidate in ready if has_room(candidate)]
    if not free:
        return Shortage.FULL if ready else Shortage.NOT_READY
    return pick(free, rng).replica


def is_ready_for(candidate: Candidate, demand: Demand) -> bool:
    """Whether the replica could serve the request, had it room."""
    replica = candidate.replica
    return (
        replica.phase is ReplicaPhase.READY
        and candidate.reachable
        and replica.pool is demand.pool
        and replica.model == demand.model
        and replica.replica_id not in demand.excluded
    )


def has_room(candidate: Candidate) -> bool:
    """Whether the replica takes one more request."""
    return candidate.outstanding.requests < candidate.replica.max_requests


def score(candidate: Candidate) -> tuple[int, int]:
    """Less is better: outstanding tokens, then requests."""
    return (candidate.outstanding.tokens, candidate.outstanding.requests)


def pick(candidates: Sequence[Candidate], rng: Random) -> Candidate:
    """The better of two drawn at random. `candidates` must not be empty."""
    drawn: Iterable[Candidate] = candidates if len(candidates) <= 2 else rng.sample(candidates, 2)
    pair = list(drawn)
    if len(pair) == 2 and score(pair[0]) == score(pair[1]):
        return rng.choice(pair)
    return min(pair, key=score)
