"""Which replica takes a request: filter, score, pick. One set of policies serves the router, a gateway without one, and simulations.

* least-tokens: the replica with the fewest outstanding tokens.
* power-of-two: of two drawn at random, the one with fewer. It looks at two replicas only, and routers that know nothing of each other do
  not herd. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
* prefix-affinity: equal beginnings of prompts go to the same replica, whatever it has cached.
* kv-aware: the replica that has most of the prompt in its cache.
* session: requests of one session go to the same replica.

Outstanding means dispatched and not ended, so a dispatch counts at once, not only when the replica's next load report comes; tokens that
its cache spares a replica do not count. The last three policies hold on to a replica only while its outstanding tokens exceed those of the
least loaded one by no more than the lead that settings allow; past that they balance, so that a prefix that everybody sends makes no hot
spot. The same lead decides between a replica that has the request's adapter loaded and one that would have to load it.

In large pools kv-aware looks at a sample: the best holders of the prompt, and some replicas drawn at random.
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
"""Two full contexts of GPT-NeoX-20B: what a replica may have to do more than another before a cached prefix is given up."""
SAMPLE = 16
"""Replicas drawn of a large pool, and best holders looked at."""
AFFINITY_BLOCKS = 8
"""Of a prompt's beginning, for prefix-affinity: more than a system prompt that all share, less than most of what differs."""


class RoutingFailure(Enum):
    """Why no replica takes a request."""

    UNKNOWN_MODEL = auto()  # replicas there are, but none of any pool has this model
    NOT_READY = auto()  # none is ready that has not already failed the request
    FULL = auto()  # those that are ready have all the requests they take


class RoutingReason(StrEnum):
    """What decided."""

    FEWEST_TOKENS = "least-loaded"
    LONGEST_PREFIX = "longest-prefix"  # most of the prompt is in its cache
    BALANCE = "balance"  # others have more of the prompt, but too much to do
    AFFINITY = "affinity"  # the prompt's beginning belongs to it
    SESSION = "session"  # the session belongs to it
    ADAPTER = "adapter"  # it has the adapter loaded, and others have less to do


@dataclass(frozen=True, slots=True)
class Route:
    """The replica that takes a request. cached_tokens: of the prompt, thought to be cached there. candidates: how many there were."""

    replica: Replica
    cached_tokens: int
    reason: RoutingReason
    candidates: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What a policy picks from: candidates, at least one, of a pool's members, and what is known of the request and the caches."""

    candidates: Sequence[Candidate]
    members: ModelReplicas
    demand: Demand
    holdings: Holdings
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
    """The replica for a request, or why there is none. holdings: of the demand's blocks."""
    members = replica_index.members(demand.pool, demand.model)
    candidates = fitting(members.free, demand.excluded)
    if not candidates:
        return _routing_failure(replica_index, members, demand)
    candidate, why = _picked(policy, Offer(candidates, members, demand, holdings, imbalance_threshold_tokens), rng)
    return Route(candidate.replica, cached_tokens(candidate, demand, holdings), why, len(candidates))


def _routing_failure(replica_index: ReplicaIndex, members: ModelReplicas, demand: Demand) -> RoutingFailure:
    if replica_index and not replica_index.has_model(demand.model):
        return RoutingFailure.UNKNOWN_MODEL
    return RoutingFailure.FULL if members.has_ready(demand.excluded) else RoutingFailure.NOT_READY


# Filter


def fitting(free: Sequence[Candidate], excluded: Collection[str]) -> Sequence[Candidate]:
    """Those that are not excluded."""
    return [each for each in free if each.replica.replica_id not in excluded] if excluded else free


def with_adapter(candidates: Sequence[Candidate], adapter: str | None) -> Sequence[Candidate]:
    """Those that have the adapter loaded; of no adapter, none in particular."""
    return [each for each in candidates if adapter in each.adapters] if adapter else ()


# Score: less is better


def score(candidate: Candidate) -> tuple[int, int]:
    """Outstanding tokens, then requests."""
    return (candidate.outstanding.tokens, candidate.outstanding.requests)


def cached_tokens(candidate: Candidate, demand: Demand, holdings: Holdings) -> int:
    """Tokens of the prompt in the replica's cache."""
    return holdings.blocks(candidate.replica.replica_id) * demand.block_tokens


def is_within_lead(candidate: Candidate, least: Candidate, imbalance_threshold_tokens: int) -> bool:
    """Whether a replica has not too much more to do than the least loaded one."""
    return candidate.outstanding.tokens - least.outstanding.tokens <= imbalance_threshold_tokens


# Pick


def fewest_tokens(offer: Offer, _rng: Random) -> Pick:
    """The least loaded of all."""
    return min(offer.candidates, key=score), RoutingReason.FEWEST_TOKENS


def power_of_two(offer: Offer, rng: Random) -> Pick:
    """The less loaded of two, either of two equals."""
    return min(rng.sample(offer.candidates, min(2, len(offer.candidates))), key=score), RoutingReason.FEWEST_TOKENS


def kv_aware(offer: Offer, rng: Random) -> Pick:
    """The best holder, of equals the least loaded; past the lead, the one that is through first with all it has and this prompt."""
    drawn = _drawn_of(offer.candidates, SAMPLE, rng)
    least = min(drawn, key=score)
    if not offer.holdings:
        return least, RoutingReason.FEWEST_TOKENS
    found = [(cached_tokens(each, offer.demand, offer.holdings), each) for each in (*drawn, *_holders(offer, rng))]
    cached, best = min(found, key=lambda one: (-one[0], *score(one[1])))
    if not cached:
        return least, RoutingReason.FEWEST_TOKENS
    if is_within_lead(best, least, offer.imbalance_threshold_tokens):
        return best, RoutingReason.LONGEST_PREFIX
    _, soonest = min(found, key=lambda one: (one[1].outstanding.tokens - one[0], one[1].outstanding.requests))
    return soonest, RoutingReason.LONGEST_PREFIX if soonest is best else RoutingReason.BALANCE


def prefix_affinity(offer: Offer, rng: Random) -> Pick:
    """The owner of the prompt's beginning; of a prompt without a full block, the least loaded."""
    blocks = offer.demand.blocks[:AFFINITY_BLOCKS]
    return (_owner(offer, blocks[-1]), RoutingReason.AFFINITY) if blocks else fewest_tokens(offer, rng)


def session(offer: Offer, rng: Random) -> Pick:
    """The owner of the session; without one, the least loaded."""
    name = offer.demand.session
    return (_owner(offer, crc32(name.encode())), RoutingReason.SESSION) if name else fewest_tokens(offer, rng)


POLICIES: Mapping[str, Policy] = {
    "least-tokens": fewest_tokens,
    "power-of-two": power_of_two,
    "prefix-affinity": prefix_affinity,
    "kv-aware": kv_aware,
    "session": session,
}
"""By the name that settings use."""
DEFAULT_POLICY = "kv-aware"


def _picked(policy: Policy, offer: Offer, rng: Random) -> Pick:
    """As the policy picks, of those that have the adapter loaded where there are any and they have not too much to do."""
    loaded = with_adapter(offer.candidates, offer.demand.adapter)
    if not loaded or len(loaded) == len(offer.candidates):
        return policy(offer, rng)
    candidate, _ = policy(Offer(loaded, offer.members, offer.demand, offer.holdings, offer.imbalance_threshold_tokens), rng)
    least = min(_drawn_of(offer.candidates, SAMPLE, rng), key=score)
    return (
        (candidate, RoutingReason.ADAPTER)
        if is_within_lead(candidate, least, offer.imbalance_threshold_tokens)
        else (least, RoutingReason.BALANCE)
    )


def _drawn_of(candidates: Sequence[Candidate], count: int, rng: Random) -> Sequence[Candidate]:
    """All of few, in any order; so many draws of many, in which one may come twice: that costs a fifth of keeping them apart."""
    return rng.sample(candidates, len(candidates)) if len(candidates) <= count else rng.choices(candidates, k=count)


def _holders(offer: Offer, rng: Random) -> list[Candidate]:
    """The candidates that have most of the prompt."""
    found = [offer.members.find_free(replica_id) for replica_id in offer.holdings.longest(SAMPLE, rng)]
    if offer.candidates is offer.members.free:
        return [each for each in found if each is not None]
    offered = {each.replica.replica_id for each in offer.candidates}
    return [each for each in found if each is not None and each.replica.replica_id in offered]


def _owner(offer: Offer, key: int) -> Candidate:
    """By rendezvous: each replica draws a number for the key, the same one always, and the highest of those within the lead wins.

    A replica that comes or goes moves no key but those that it takes or had. Source: Thaler and Ravishankar, "Using Name-Based Mappings to
    Increase Hit Rates", IEEE/ACM Transactions on Networking 6(1), 1998.
    """
    least = min(offer.candidates, key=score)
    return max(
        (each for each in offer.candidates if is_within_lead(each, least, offer.imbalance_threshold_tokens)),
        key=lambda each: _drawn(each, key),
    )


def _drawn(candidate: Candidate, key: int) -> int:
    """A number from 0 to 2^64 - 1. Source: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (crc32(candidate.replica.replica_id.encode()) * 0x9E3779B97F4A7C15 ^ key) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 31
