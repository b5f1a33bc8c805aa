"""Chooses the replica for a request: filter, score, pick. The router, a gateway without a router and the simulations share these policies.

* least-tokens: the replica with the fewest outstanding tokens.
* power-of-two: the replica with fewer outstanding tokens of two drawn at random. It looks at only two replicas, and routers that do not
  know of each other do not all choose the same one. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE
  TPDS 12(10), 2001.
* prefix-affinity: prompts with equal beginnings go to the same replica, whatever it has cached.
* kv-aware: the replica that has most of the prompt in its prefix cache.
* session: requests of one session go to the same replica.

Outstanding tokens belong to requests that were dispatched and have not ended, so a dispatch counts at once, before the replica's next load
report. Prompt tokens that the replica has cached do not count. The last three policies prefer a replica only while its outstanding tokens
exceed those of the least loaded replica by at most `imbalance_threshold_tokens`. Beyond that they balance the load, so that a prefix used
by everyone does not overload one replica. The same threshold decides between a replica that has the request's adapter loaded and one that
would have to load it.

In large pools kv-aware looks at a sample: the replicas that hold most of the prompt, and some replicas drawn at random.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from random import Random
from zlib import crc32

from neox_serve.core.cluster import Demand, Replica
from neox_serve.core.prefix_cache.block_index import NO_HOLDINGS, Holdings
from neox_serve.core.scheduling.replica_index import Candidate, ModelReplicas, ReplicaIndex

DEFAULT_IMBALANCE_THRESHOLD_TOKENS = 4096
"""Load imbalance (tokens) above which cache affinity is ignored: two full contexts of GPT-NeoX-20B."""
SAMPLE = 16
"""Number of replicas drawn from a large pool, and number of best prefix holders considered."""
AFFINITY_BLOCKS = 8
"""Number of leading blocks that prefix-affinity uses: more than a shared system prompt, less than most individual prompts."""


class RoutingFailure(Enum):
    """Why no replica can take a request."""

    UNKNOWN_MODEL = auto()
    """There are replicas, but none of any pool serves this model."""
    NOT_READY = auto()
    """No replica is ready, apart from those on which the request already failed."""
    FULL = auto()
    """All ready replicas have their maximum number of requests."""


class RoutingReason(StrEnum):
    """Why a replica was chosen."""

    FEWEST_TOKENS = "least-loaded"
    LONGEST_PREFIX = "longest-prefix"
    """It has most of the prompt in its cache."""
    BALANCE = "balance"
    """Other replicas have more of the prompt or the adapter, but too much load."""
    AFFINITY = "affinity"
    """The beginning of the prompt maps to it."""
    SESSION = "session"
    """The session maps to it."""
    ADAPTER = "adapter"
    """It has the adapter loaded, and replicas without it are not much less loaded."""


@dataclass(frozen=True, slots=True)
class Route:
    """The replica chosen for a request."""

    replica: Replica
    cached_tokens: int
    """Prompt tokens that the replica is expected to have cached."""
    reason: RoutingReason
    candidates: int
    """Number of replicas that could have taken the request."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a policy picks from."""

    candidates: Sequence[Candidate]
    """Replicas that can take the request, at least one."""
    members: ModelReplicas
    """All replicas of the pool and model."""
    demand: Demand
    holdings: Holdings
    """What the replicas have cached of the prompt."""
    imbalance_threshold_tokens: int


Pick = tuple[Candidate, RoutingReason]
Policy = Callable[[Offer, Random], Pick]


def choose(
    policy: Policy,
    replica_index: ReplicaIndex,
    demand: Demand,
    rng: Random,
    *,
    holdings: Holdings = NO_HOLDINGS,
    imbalance_threshold_tokens: int = DEFAULT_IMBALANCE_THRESHOLD_TOKENS,
) -> Route | RoutingFailure:
    """Returns the replica for a request, or why there is none. holdings: looked up for the blocks of `demand`."""
    members = replica_index.members(demand.pool, demand.model)
    candidates = fitting(members.free, demand.excluded)
    if not candidates:
        return _routing_failure(replica_index, members, demand)
    candidate, reason = _picked(policy, Offer(candidates, members, demand, holdings, imbalance_threshold_tokens), rng)
    return Route(candidate.replica, cached_tokens(candidate, demand, holdings), reason, len(candidates))


def _routing_failure(replica_index: ReplicaIndex, members: ModelReplicas, demand: Demand) -> RoutingFailure:
    if replica_index and not replica_index.has_model(demand.model):
        return RoutingFailure.UNKNOWN_MODEL
    return RoutingFailure.FULL if members.has_ready(demand.excluded) else RoutingFailure.NOT_READY


# Filter


def fitting(free: Sequence[Candidate], excluded: Collection[str]) -> Sequence[Candidate]:
    """Returns the replicas that are not excluded."""
    return [each for each in free if each.replica.replica_id not in excluded] if excluded else free


def with_adapter(candidates: Sequence[Candidate], adapter: str | None) -> Sequence[Candidate]:
    """Returns the replicas that have the adapter loaded; none if the request uses no adapter."""
    return [each for each in candidates if adapter in each.adapters] if adapter else ()


# Score: lower is better


def score(candidate: Candidate) -> tuple[int, int]:
    """Returns a sort key: outstanding tokens, then outstanding requests."""
    return (candidate.outstanding.tokens, candidate.outstanding.requests)


def cached_tokens(candidate: Candidate, demand: Demand, holdings: Holdings) -> int:
    """Returns how many prompt tokens the replica has cached."""
    return holdings.blocks(candidate.replica.replica_id) * demand.block_tokens


def is_balanced(candidate: Candidate, least_loaded: Candidate, imbalance_threshold_tokens: int) -> bool:
    """Returns whether a replica has at most the threshold more outstanding tokens than the least loaded one."""
    return candidate.outstanding.tokens - least_loaded.outstanding.tokens <= imbalance_threshold_tokens


# Pick


def fewest_tokens(offer: Offer, _rng: Random) -> Pick:
    """Picks the least loaded replica."""
    return min(offer.candidates, key=score), RoutingReason.FEWEST_TOKENS


def power_of_two(offer: Offer, rng: Random) -> Pick:
    """Picks the less loaded of two replicas drawn at random."""
    return min(rng.sample(offer.candidates, min(2, len(offer.candidates))), key=score), RoutingReason.FEWEST_TOKENS


def kv_aware(offer: Offer, rng: Random) -> Pick:
    """Picks the replica that has most of the prompt cached; among equals, the least loaded.

    If that replica exceeds the imbalance threshold, picks the one that would finish its outstanding tokens and this prompt first.
    """
    drawn = _drawn_of(offer.candidates, SAMPLE, rng)
    least_loaded = min(drawn, key=score)
    if not offer.holdings:
        return least_loaded, RoutingReason.FEWEST_TOKENS
    found = [(cached_tokens(each, offer.demand, offer.holdings), each) for each in (*drawn, *_holders(offer, rng))]
    cached, best = min(found, key=lambda one: (-one[0], *score(one[1])))
    if not cached:
        return least_loaded, RoutingReason.FEWEST_TOKENS
    if is_balanced(best, least_loaded, offer.imbalance_threshold_tokens):
        return best, RoutingReason.LONGEST_PREFIX
    _, soonest = min(found, key=lambda one: (one[1].outstanding.tokens - one[0], one[1].outstanding.requests))
    return soonest, RoutingReason.LONGEST_PREFIX if soonest is best else RoutingReason.BALANCE


def prefix_affinity(offer: Offer, rng: Random) -> Pick:
    """Picks the replica that the beginning of the prompt maps to, or the least loaded one if the prompt has no full block."""
    blocks = offer.demand.blocks[:AFFINITY_BLOCKS]
    return (_owner(offer, blocks[-1]), RoutingReason.AFFINITY) if blocks else fewest_tokens(offer, rng)


def session(offer: Offer, rng: Random) -> Pick:
    """Picks the replica that the session maps to, or the least loaded one if there is no session."""
    name = offer.demand.session
    return (_owner(offer, crc32(name.encode())), RoutingReason.SESSION) if name else fewest_tokens(offer, rng)


POLICIES: Mapping[str, Policy] = {
    "least-tokens": fewest_tokens,
    "power-of-two": power_of_two,
    "prefix-affinity": prefix_affinity,
    "kv-aware": kv_aware,
    "session": session,
}
"""Policies by their names in the settings."""
DEFAULT_POLICY = "kv-aware"


def _picked(policy: Policy, offer: Offer, rng: Random) -> Pick:
    """Applies the policy to the replicas that have the adapter loaded, if there are any within the imbalance threshold."""
    loaded = with_adapter(offer.candidates, offer.demand.adapter)
    if not loaded or len(loaded) == len(offer.candidates):
        return policy(offer, rng)
    candidate, _ = policy(Offer(loaded, offer.members, offer.demand, offer.holdings, offer.imbalance_threshold_tokens), rng)
    least_loaded = min(_drawn_of(offer.candidates, SAMPLE, rng), key=score)
    if is_balanced(candidate, least_loaded, offer.imbalance_threshold_tokens):
        return candidate, RoutingReason.ADAPTER
    return least_loaded, RoutingReason.BALANCE


def _drawn_of(candidates: Sequence[Candidate], count: int, rng: Random) -> Sequence[Candidate]:
    """Returns all candidates if there are at most `count`, otherwise `count` draws.

    A draw may repeat a candidate: drawing distinct ones takes five times as long.
    """
    return rng.sample(candidates, len(candidates)) if len(candidates) <= count else rng.choices(candidates, k=count)


def _holders(offer: Offer, rng: Random) -> list[Candidate]:
    """Returns the candidates that have most of the prompt cached."""
    found = [offer.members.find_free(replica_id) for replica_id in offer.holdings.longest(SAMPLE, rng)]
    if offer.candidates is offer.members.free:
        return [each for each in found if each is not None]
    offered = {each.replica.replica_id for each in offer.candidates}
    return [each for each in found if each is not None and each.replica.replica_id in offered]


def _owner(offer: Offer, key: int) -> Candidate:
    """Returns the replica that a key maps to, by rendezvous hashing among the replicas within the imbalance threshold.

    Each replica gets a fixed number for the key, and the highest number wins. Adding or removing a replica moves only the keys that map to
    it. Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM Transactions on Networking 6(1), 1998.
    """
    least_loaded = min(offer.candidates, key=score)
    return max(
        (each for each in offer.candidates if is_balanced(each, least_loaded, offer.imbalance_threshold_tokens)),
        key=lambda each: _drawn(each, key),
    )


def _drawn(candidate: Candidate, key: int) -> int:
    """Returns a replica's number for a key, 0 to 2^64 - 1. Source: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (crc32(candidate.replica.replica_id.encode()) * 0x9E3779B97F4A7C15 ^ key) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 31
