"""Which replica takes a request: filter, score, pick. The same policy serves the router and a gateway without one.

The policy: of two replicas drawn at random, the one with fewer outstanding tokens. Outstanding means dispatched and not ended, so a
dispatch counts at once, not only when the replica's next load report comes. Two random choices balance well and do not herd.
Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
"""

from collections.abc import Collection, Sequence
from enum import Enum, auto
from random import Random

from neox_serve.core.cluster import Demand, Replica
from neox_serve.core.roster import Candidate, Roster


class Shortage(Enum):
    """Why no replica takes a request."""

    UNKNOWN_MODEL = auto()  # replicas there are, but none of any pool has this model
    NOT_READY = auto()  # none is ready that has not already failed the request
    FULL = auto()  # those that are ready have all the requests they take


def choose(roster: Roster, demand: Demand, rng: Random) -> Replica | Shortage:
    """The replica for a request, or why there is none."""
    members = roster.members(demand.pool, demand.model)
    chosen = pick(members.free, demand.excluded, rng)
    if chosen is not None:
        return chosen.replica
    if roster and not roster.has_model(demand.model):
        return Shortage.UNKNOWN_MODEL
    return Shortage.FULL if members.has_ready(demand.excluded) else Shortage.NOT_READY


def pick(free: Sequence[Candidate], excluded: Collection[str], rng: Random) -> Candidate | None:
    """The better of two drawn at random, either of two equals; None where all are excluded. Looks at as many more as are excluded."""
    drawn = rng.sample(free, min(len(free), 2 + len(excluded)))
    pair = [candidate for candidate in drawn if candidate.replica.replica_id not in excluded][:2]
    return min(pair, key=score, default=None)


def score(candidate: Candidate) -> tuple[int, int]:
    """Less is better: outstanding tokens, then requests."""
    return (candidate.outstanding.tokens, candidate.outstanding.requests)
