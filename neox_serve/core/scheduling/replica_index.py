"""The replicas that routing chooses from, kept sorted as they change, so that a decision need not look at all of them.

For each pool and model the index knows which replicas exist, which of them are ready, and which of those have room for another request.
Every change of a replica, its load or its leases updates the index, at a cost that does not depend on the size of the cluster.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from neox_serve.core.cluster import Outstanding, Replica, ReplicaPhase
from neox_serve.core.types import Pool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as routing sees it."""

    replica: Replica
    outstanding: Outstanding
    """Requests and tokens that were dispatched to it and have not ended."""
    reachable: bool = True
    """Whether its connection is up."""
    tokens_per_second: float = 0.0
    """Output tokens per second, as it last reported."""
    adapters: frozenset[str] = frozenset()
    """Names of the adapters it has loaded, as it last reported."""


def is_ready(candidate: Candidate) -> bool:
    """Returns whether the replica accepts requests if it has room."""
    return candidate.replica.phase is ReplicaPhase.READY and candidate.reachable


def has_room(candidate: Candidate) -> bool:
    """Returns whether the replica has room for one more request."""
    return candidate.outstanding.requests < candidate.replica.max_requests


class ModelReplicas:
    """The replicas of one model in one pool."""

    def __init__(self) -> None:
        self._requests: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._ready: set[str] = set()
        self._free: list[Candidate] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def free(self) -> Sequence[Candidate]:
        """Replicas that are ready and have room, in arbitrary order."""
        return self._free

    def find_free(self, replica_id: str) -> Candidate | None:
        """Returns the replica with this id if it is ready and has room."""
        place = self._places.get(replica_id)
        return None if place is None else self._free[place]

    @property
    def outstanding(self) -> Outstanding:
        """Sum of the outstanding requests and tokens of all replicas."""
        return Outstanding(sum(self._requests.values()), sum(self._tokens.values()))

    @property
    def tokens_per_second(self) -> float:
        """Sum of the replicas' output rates."""
        return sum(self._rates.values())

    @property
    def ready(self) -> int:
        """Number of ready replicas, with or without room."""
        return len(self._ready)

    def has_ready(self, excluded: Collection[str]) -> bool:
        """Returns whether a replica that is not excluded is ready, with or without room."""
        return any(replica_id not in excluded for replica_id in self._ready)

    def put(self, candidate: Candidate) -> None:
        """Adds or replaces a replica."""
        replica_id = candidate.replica.replica_id
        self._requests[replica_id] = candidate.outstanding.requests
        self._tokens[replica_id] = candidate.outstanding.tokens
        self._rates[replica_id] = candidate.tokens_per_second
        if is_ready(candidate):
            self._ready.add(replica_id)
        else:
            self._ready.discard(replica_id)
        if is_ready(candidate) and has_room(candidate):
            self._put_free(candidate)
        else:
            self._remove_free(replica_id)

    def remove(self, replica_id: str) -> None:
        """Removes a known replica."""
        for sums in (self._requests, self._tokens, self._rates):
            del sums[replica_id]
        self._ready.discard(replica_id)
        self._remove_free(replica_id)

    def credit(self, candidate: Candidate) -> None:
        """Updates a known replica of which only the outstanding requests changed."""
        replica_id, outstanding = candidate.replica.replica_id, candidate.outstanding
        self._requests[replica_id] = outstanding.requests
        self._tokens[replica_id] = outstanding.tokens
        if replica_id in self._ready:
            if outstanding.requests < candidate.replica.max_requests:
                self._put_free(candidate)
            else:
                self._remove_free(replica_id)

    def _put_free(self, candidate: Candidate) -> None:
        place = self._places.setdefault(candidate.replica.replica_id, len(self._free))
        if place == len(self._free):
            self._free.append(candidate)
        else:
            self._free[place] = candidate

    def _remove_free(self, replica_id: str) -> None:
        """Removes a replica from the free list. The last one takes its place, so that no other moves."""
        place = self._places.pop(replica_id, None)
        if place is None:
            return
        last = self._free.pop()
        if place < len(self._free):
            self._free[place] = last
            self._places[last.replica.replica_id] = place


class ReplicaIndex:
    """All replicas, by pool and model. `put` may be called in any order and whenever a replica changes."""

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self._candidates: dict[str, Candidate] = {}
        self._members: dict[tuple[Pool, str], ModelReplicas] = {}
        self._no_replicas = ModelReplicas()
        for candidate in candidates:
            self.put(candidate)

    def __len__(self) -> int:
        return len(self._candidates)

    def members(self, pool: Pool, model: str) -> ModelReplicas:
        """Returns the replicas of a model in a pool; empty if there are none."""
        return self._members.get((pool, model), self._no_replicas)

    def outstanding(self, pool: Pool) -> Outstanding:
        """Returns the sum of the outstanding requests and tokens of a pool."""
        sums = [members.outstanding for (members_pool, _), members in self._members.items() if members_pool is pool]
        return Outstanding(sum(each.requests for each in sums), sum(each.tokens for each in sums))

    def has_model(self, model: str) -> bool:
        """Returns whether any replica of any pool serves the model, ready or not."""
        return any((pool, model) in self._members for pool in Pool)

    def put(self, candidate: Candidate) -> None:
        """Adds or replaces a replica."""
        replica = candidate.replica
        known = self._candidates.get(replica.replica_id)
        if known and _key(known) != _key(candidate):
            self.remove(replica.replica_id)
        self._candidates[replica.replica_id] = candidate
        if _key(candidate) not in self._members:
            self._members[_key(candidate)] = ModelReplicas()
        self._members[_key(candidate)].put(candidate)

    def credit(self, replica_id: str, outstanding: Outstanding) -> None:
        """Updates the outstanding requests and tokens of a replica. Does nothing for an unknown replica."""
        if known := self._candidates.get(replica_id):
            candidate = Candidate(known.replica, outstanding, known.reachable, known.tokens_per_second, known.adapters)
            self._candidates[replica_id] = candidate
            self._members[_key(candidate)].credit(candidate)

    def remove(self, replica_id: str) -> None:
        """Removes a known replica."""
        key = _key(self._candidates.pop(replica_id))
        self._members[key].remove(replica_id)
        if not self._members[key]:
            del self._members[key]


def _key(candidate: Candidate) -> tuple[Pool, str]:
    return candidate.replica.pool, candidate.replica.model
