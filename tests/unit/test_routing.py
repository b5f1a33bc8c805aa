"""Which replica takes a request."""

from collections import Counter
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.cluster import Demand, Outstanding, Replica, ReplicaPhase
from neox_serve.core.roster import Candidate, Roster, has_room, is_ready
from neox_serve.core.routing import Shortage, pick, score
from neox_serve.core.routing import choose as choose_from_roster
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
) -> Candidate:
    replica = Replica(name, pool, model, f"{name}:1", max_requests=8, phase=phase)
    return Candidate(replica, Outstanding(requests if requests is not None else min(tokens, 1), tokens), reachable)


def choose(candidates: Iterable[Candidate], demand: Demand, rng: Random) -> Replica | Shortage:
    return choose_from_roster(Roster(candidates), demand, rng)


def test_choose_of_two_takes_the_one_with_fewer_outstanding_tokens() -> None:
    busy, free = candidate("busy", 500), candidate("free", 100)
    assert {choose([busy, free], DEMAND, Random(seed)) for seed in range(20)} == {free.replica}


def test_choose_between_equals_takes_either() -> None:
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
def test_choose_never_takes_a_replica_that_cannot_serve(other: Candidate) -> None:
    busy = candidate("busy", 10**6)
    assert {choose([other, busy], DEMAND, Random(seed)) for seed in range(20)} == {busy.replica}


def test_choose_with_the_only_replica_excluded_finds_none_ready() -> None:
    demand = Demand(Pool.GENERATION, "m", 1, 1, excluded=("a",))
    assert choose([candidate("a")], demand, Random(0)) is Shortage.NOT_READY


@pytest.mark.parametrize(
    ("candidates", "shortage"),
    [
        ([], Shortage.NOT_READY),
        ([candidate(model="another")], Shortage.UNKNOWN_MODEL),
        ([candidate(pool=Pool.EMBEDDING)], Shortage.NOT_READY),
        ([candidate(requests=8)], Shortage.FULL),
    ],
    ids=["no replica yet", "another model", "another pool", "full"],
)
def test_choose_without_a_fitting_replica_says_why(candidates: list[Candidate], shortage: Shortage) -> None:
    assert choose(candidates, DEMAND, Random(0)) is shortage


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
    ),
    max_size=12,
)


@given(CANDIDATES, st.integers())
def test_choose_finds_a_fitting_replica_if_and_only_if_there_is_one(candidates: list[Candidate], seed: int) -> None:
    fitting = [each.replica for each in candidates if fits(each, DEMAND)]
    choice = choose(candidates, DEMAND, Random(seed))
    assert choice in fitting if fitting else isinstance(choice, Shortage)


def fits(candidate: Candidate, demand: Demand) -> bool:
    replica = candidate.replica
    return is_ready(candidate) and has_room(candidate) and (replica.pool, replica.model) == (demand.pool, demand.model)


SOME = st.lists(st.builds(candidate, name=st.uuids().map(str), tokens=st.integers(0, 1000)), min_size=2, max_size=12)


@given(SOME, st.integers())
def test_pick_never_takes_the_one_worst_candidate(candidates: list[Candidate], seed: int) -> None:
    worst = max(score(each) for each in candidates)
    if sum(score(each) == worst for each in candidates) == 1:
        assert score(picked(candidates, (), seed)) < worst


@given(SOME, st.data(), st.integers())
def test_pick_with_some_excluded_takes_as_from_the_others_alone(candidates: list[Candidate], data: st.DataObject, seed: int) -> None:
    excluded = data.draw(st.lists(st.sampled_from([each.replica.replica_id for each in candidates]), unique=True))
    others = [each for each in candidates if each.replica.replica_id not in excluded]
    chosen = pick(candidates, excluded, Random(seed))
    assert chosen in others if others else chosen is None
    if chosen is not None and len(others) > 1:
        assert score(chosen) <= sorted(map(score, others))[-2]


def test_pick_with_some_excluded_draws_each_other_pair_equally_often() -> None:
    candidates = [candidate(name, tokens) for tokens, name in enumerate("abcdef")]
    counts = Counter(picked(candidates, ("a", "d"), seed).replica.replica_id for seed in range(6000))
    assert {name: round(count / 1000) for name, count in counts.items()} == {"b": 3, "c": 2, "e": 1}


def picked(candidates: list[Candidate], excluded: tuple[str, ...], seed: int) -> Candidate:
    chosen = pick(candidates, excluded, Random(seed))
    assert chosen is not None
    return chosen


def test_pick_dispatches_credited_at_once_stay_balanced() -> None:
    rng, tokens = Random(7), dict.fromkeys(map(str, range(8)), 0)
    for _ in range(4000):
        chosen = pick([candidate(name, claimed) for name, claimed in tokens.items()], (), rng)
        assert chosen is not None
        tokens[chosen.replica.replica_id] += rng.randint(10, 500)
    assert max(tokens.values()) - min(tokens.values()) < 5 * 500
