"""The routing policies."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.cluster import Demand, Outstanding, Replica, ReplicaPhase
from neox_serve.core.prefix_cache.block_index import NO_HOLDINGS, BlockIndex, BlockNews, Holdings
from neox_serve.core.scheduling.replica_index import Candidate, ModelReplicas, ReplicaIndex, has_room, is_ready
from neox_serve.core.scheduling.routing import POLICIES, Offer, Route, RoutingFailure, RoutingReason, power_of_two, score
from neox_serve.core.scheduling.routing import choose as choose_replica
from neox_serve.core.types import Pool

DEMAND = Demand(Pool.GENERATION, "m", prompt_tokens=10, output_tokens=90)


def candidate(
    name: str = "a",
    tokens: int = 0,
    *,
    requests: int | None = None,
    pool: Pool = Pool.GENERATION,
    model: str = "m",
    phase: ReplicaPhase = ReplicaPhase.READY,
    reachable: bool = True,
    adapters: frozenset[str] = frozenset(),
) -> Candidate:
    replica = Replica(name, pool, model, f"{name}:1", max_requests=8, phase=phase)
    outstanding = Outstanding(requests if requests is not None else min(tokens, 1), tokens)
    return Candidate(replica, outstanding, reachable, adapters=adapters)


def choose(candidates: Iterable[Candidate], demand: Demand, rng: Random) -> Replica | RoutingFailure:
    choice = choose_replica(power_of_two, ReplicaIndex(candidates), demand, rng)
    return choice.replica if isinstance(choice, Route) else choice


def test_choose_between_two_picks_the_one_with_fewer_outstanding_tokens() -> None:
    busy, free = candidate("busy", 500), candidate("free", 100)
    assert {choose([busy, free], DEMAND, Random(seed)) for seed in range(20)} == {free.replica}


def test_choose_between_equals_picks_either() -> None:
    pair = [candidate("a", 100), candidate("b", 100)]
    assert {choose(pair, DEMAND, Random(seed)) for seed in range(20)} == {each.replica for each in pair}


@pytest.mark.parametrize(
    "other",
    [
        candidate("other", model="another"),
        candidate("other", pool=Pool.EMBEDDING),
        candidate("other", phase=ReplicaPhase.DRAINING),
        candidate("other", phase=ReplicaPhase.UNHEALTHY),
        candidate("other", reachable=False),
        candidate("other", requests=8),
    ],
    ids=["model", "pool", "draining", "unhealthy", "unreachable", "full"],
)
def test_choose_never_picks_a_replica_that_cannot_serve(other: Candidate) -> None:
    busy = candidate("busy", 10**6)
    assert {choose([other, busy], DEMAND, Random(seed)) for seed in range(20)} == {busy.replica}


def test_choose_with_the_only_replica_excluded_returns_not_ready() -> None:
    demand = Demand(Pool.GENERATION, "m", 1, 1, excluded=("a",))
    assert choose([candidate("a")], demand, Random(0)) is RoutingFailure.NOT_READY


@pytest.mark.parametrize(
    ("candidates", "failure"),
    [
        ([], RoutingFailure.NOT_READY),
        ([candidate(model="another")], RoutingFailure.UNKNOWN_MODEL),
        ([candidate(pool=Pool.EMBEDDING)], RoutingFailure.NOT_READY),
        ([candidate(requests=8)], RoutingFailure.FULL),
    ],
    ids=["no replica yet", "another model", "another pool", "full"],
)
def test_choose_without_a_fitting_replica_returns_the_reason(candidates: list[Candidate], failure: RoutingFailure) -> None:
    assert choose(candidates, DEMAND, Random(0)) is failure


CANDIDATES = st.lists(
    st.builds(
        candidate,
        name=st.uuids().map(str),
        tokens=st.integers(0, 1000),
        requests=st.integers(0, 9),
        pool=st.sampled_from(Pool),
        model=st.sampled_from(["m", "n"]),
        phase=st.sampled_from(ReplicaPhase),
        reachable=st.booleans(),
        adapters=st.frozensets(st.sampled_from(["x", "y"])),
    ),
    max_size=12,
)
DEMANDS = st.builds(
    Demand,
    st.just(Pool.GENERATION),
    st.just("m"),
    st.just(10),
    st.just(90),
    adapter=st.sampled_from([None, "x"]),
    session=st.sampled_from(["", "s"]),
    blocks=st.lists(st.integers(0, 2), max_size=3).map(tuple),
    block_tokens=st.just(4),
)


@given(st.sampled_from(sorted(POLICIES)), CANDIDATES, DEMANDS, st.data(), st.integers())
def test_every_policy_finds_a_fitting_replica_if_and_only_if_there_is_one(
    name: str, candidates: list[Candidate], demand: Demand, data: st.DataObject, seed: int
) -> None:
    excluded = tuple(data.draw(st.sets(st.sampled_from([each.replica.replica_id for each in candidates])))) if candidates else ()
    demand = replace(demand, excluded=excluded)
    index = BlockIndex()
    for each in candidates:
        index.take(each.replica.replica_id, BlockNews(0, stored=data.draw(st.lists(st.integers(0, 2))), restarts=True))
    fitting = [each.replica for each in candidates if fits(each, demand)]
    choice = choose_replica(POLICIES[name], ReplicaIndex(candidates), demand, Random(seed), holdings=index.look_up(demand.blocks))
    if fitting:
        assert isinstance(choice, Route)
        assert choice.replica in fitting
        assert choice.candidates == len(fitting)
        assert 0 <= choice.cached_tokens <= 4 * len(demand.blocks)
    else:
        assert isinstance(choice, RoutingFailure)


def fits(candidate: Candidate, demand: Demand) -> bool:
    replica = candidate.replica
    wanted = (replica.pool, replica.model) == (demand.pool, demand.model) and replica.replica_id not in demand.excluded
    return wanted and is_ready(candidate) and has_room(candidate)


SOME = st.lists(st.builds(candidate, name=st.uuids().map(str), tokens=st.integers(0, 1000)), min_size=2, max_size=12)


@given(SOME, st.integers())
def test_power_of_two_never_picks_the_single_worst_candidate(candidates: list[Candidate], seed: int) -> None:
    worst = max(score(each) for each in candidates)
    if sum(score(each) == worst for each in candidates) == 1:
        assert score(picked("power-of-two", candidates, seed=seed)) < worst


@given(SOME, st.integers())
def test_least_tokens_picks_the_least_loaded_of_all(candidates: list[Candidate], seed: int) -> None:
    assert score(picked("least-tokens", candidates, seed=seed)) == min(map(score, candidates))


def test_power_of_two_with_some_excluded_draws_each_other_pair_equally_often() -> None:
    demand = replace(DEMAND, excluded=("a", "d"))
    candidates = [candidate(name, tokens) for tokens, name in enumerate("abcdef")]
    drawn = [choose(candidates, demand, Random(seed)) for seed in range(6000)]
    counts = Counter(replica.replica_id for replica in drawn if isinstance(replica, Replica))
    assert {name: round(count / 1000) for name, count in counts.items()} == {"b": 3, "c": 2, "e": 1}


@pytest.mark.parametrize("name", ["power-of-two", "least-tokens", "kv-aware"])
def test_dispatches_that_count_at_once_stay_balanced(name: str) -> None:
    rng, tokens = Random(7), dict.fromkeys(map(str, range(8)), 0)
    for seed in range(4000):
        chosen = picked(name, [candidate(name, claimed) for name, claimed in tokens.items()], seed=seed)
        tokens[chosen.replica.replica_id] += rng.randint(10, 500)
    assert max(tokens.values()) - min(tokens.values()) < 5 * 500


def holdings(demand: Demand, **blocks: int) -> Holdings:
    """Returns holdings: for each replica, its number of leading blocks of the demand."""
    index = BlockIndex()
    for replica_id, held in blocks.items():
        index.take(replica_id, BlockNews(0, stored=demand.blocks[:held], restarts=True))
    return index.look_up(demand.blocks)


def route(
    name: str,
    candidates: Iterable[Candidate],
    demand: Demand,
    known: Holdings = NO_HOLDINGS,
    imbalance_threshold_tokens: int = 500,
    seed: int = 0,
) -> Route:
    choice = choose_replica(
        POLICIES[name],
        ReplicaIndex(candidates),
        demand,
        Random(seed),
        holdings=known,
        imbalance_threshold_tokens=imbalance_threshold_tokens,
    )
    assert isinstance(choice, Route)
    return choice


def picked(name: str, candidates: list[Candidate], *, seed: int) -> Candidate:
    """Returns the candidates as `ReplicaIndex` holds them if all are free."""
    members = ModelReplicas()
    for each in candidates:
        members.put(each)
    return POLICIES[name](Offer(members.free, members, DEMAND, NO_HOLDINGS, 0), Random(seed))[0]


LONG = Demand(Pool.GENERATION, "m", 1000, 90, blocks=tuple(range(100, 109)), block_tokens=100)


def test_kv_aware_within_the_threshold_picks_the_longest_prefix() -> None:
    pool = [candidate("free", 0), candidate("some", 100), candidate("most", 500)]
    found = route("kv-aware", pool, LONG, holdings(LONG, some=3, most=8))
    assert found == Route(pool[2].replica, cached_tokens=800, reason=RoutingReason.LONGEST_PREFIX, candidates=3)


def test_kv_aware_beyond_the_threshold_picks_the_replica_that_finishes_first() -> None:
    pool = [candidate("free", 0), candidate("some", 100), candidate("most", 1200)]
    found = route("kv-aware", pool, LONG, holdings(LONG, some=3, most=8))
    assert found == Route(pool[1].replica, cached_tokens=300, reason=RoutingReason.BALANCE, candidates=3)


def test_kv_aware_beyond_the_threshold_keeps_a_holder_that_finishes_first() -> None:
    pool = [candidate("free", 0), candidate("most", 700)]
    assert route("kv-aware", pool, LONG, holdings(LONG, most=8)).reason is RoutingReason.LONGEST_PREFIX


def test_kv_aware_between_equal_holders_picks_the_less_loaded() -> None:
    pool = [candidate("free", 0), candidate("a", 300), candidate("b", 200)]
    assert route("kv-aware", pool, LONG, holdings(LONG, a=8, b=8)).replica is pool[2].replica


def test_kv_aware_without_a_holder_picks_the_least_loaded() -> None:
    pool = [candidate("a", 300), candidate("b", 200)]
    assert route("kv-aware", pool, LONG) == Route(pool[1].replica, 0, RoutingReason.FEWEST_TOKENS, 2)


def test_kv_aware_in_a_large_pool_finds_the_only_holder() -> None:
    pool = [candidate(f"r{number}", number % 7) for number in range(1000)]
    for seed in range(20):
        assert route("kv-aware", pool, LONG, holdings(LONG, r617=8), seed=seed).replica is pool[617].replica


def test_kv_aware_skips_holders_that_are_excluded_full_or_of_another_model() -> None:
    pool = [candidate("x"), candidate("full", requests=8), candidate("other", model="n"), candidate("last", 400)]
    demand = replace(LONG, excluded=("x",))
    assert route("kv-aware", pool, demand, holdings(LONG, x=8, full=8, other=8, last=1)).replica is pool[3].replica


def affine(policy: str, demand: Demand, pool: list[Candidate]) -> str:
    return route(policy, pool, demand).replica.replica_id


@pytest.mark.parametrize("policy", ["session", "prefix-affinity"])
def test_affinity_when_a_replica_leaves_moves_only_its_keys(policy: str) -> None:
    pool = [candidate(name) for name in "abcdefgh"]
    demands = [replace(LONG, session=f"s{number}", blocks=(number, *LONG.blocks[1:8], number)) for number in range(400)]
    before = [affine(policy, demand, pool) for demand in demands]
    after = [affine(policy, demand, pool[1:]) for demand in demands]
    assert all(was in {now, "a"} for was, now in zip(before, after, strict=True))
    counts = Counter(before)
    assert len(counts) == 8 if policy == "session" else len(counts) == 1


def test_prefix_affinity_of_different_beginnings_uses_all_replicas() -> None:
    pool = [candidate(name) for name in "abcdefgh"]
    demands = [replace(LONG, blocks=(number,)) for number in range(400)]
    counts = Counter(affine("prefix-affinity", demand, pool) for demand in demands)
    assert min(counts[name] for name in "abcdefgh") > 20


@pytest.mark.parametrize("policy", ["session", "prefix-affinity"])
def test_affinity_beyond_the_threshold_picks_another_replica(policy: str) -> None:
    demand = replace(LONG, session="s")
    pool = [candidate(name) for name in "abcd"]
    owner = affine(policy, demand, pool)
    busy = [candidate(name, 501 if name == owner else 0) for name in "abcd"]
    assert affine(policy, demand, busy) != owner


@pytest.mark.parametrize("policy", ["session", "prefix-affinity"])
def test_affinity_without_a_key_picks_the_least_loaded(policy: str) -> None:
    assert affine(policy, DEMAND, [candidate("a", 5), candidate("b", 4)]) == "b"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_prefers_a_replica_that_has_the_adapter(policy: str) -> None:
    pool = [candidate(name) for name in "abcd"] + [candidate("x", 400, adapters=frozenset({"x"}))]
    found = route(policy, pool, replace(LONG, adapter="x", session="s"))
    assert (found.replica.replica_id, found.reason, found.candidates) == ("x", RoutingReason.ADAPTER, 5)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_beyond_the_threshold_loads_the_adapter_elsewhere(policy: str) -> None:
    pool = [candidate("a"), candidate("x", 600, adapters=frozenset({"x"}))]
    assert route(policy, pool, replace(LONG, adapter="x", session="s")).replica.replica_id == "a"
