"""Which replica takes a request."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.cluster import Demand, Outstanding, Replica, ReplicaPhase
from neox_serve.core.routing import Candidate, Shortage, choose, has_room, is_ready_for, pick, score
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
    fitting = [each.replica for each in candidates if is_ready_for(each, DEMAND) and has_room(each)]
    choice = choose(candidates, DEMAND, Random(seed))
    assert choice in fitting if fitting else isinstance(choice, Shortage)


@given(st.lists(st.builds(candidate, name=st.uuids().map(str), tokens=st.integers(0, 1000)), min_size=2, max_size=12), st.integers())
def test_pick_never_takes_the_one_worst_candidate(candidates: list[Candidate], seed: int) -> None:
    worst = max(score(each) for each in candidates)
    if sum(score(each) == worst for each in candidates) == 1:
        assert score(pick(candidates, Random(seed))) < worst


def test_pick_dispatches_credited_at_once_stay_balanced() -> None:
    rng, tokens = Random(7), dict.fromkeys(map(str, range(8)), 0)
    for _ in range(4000):
        chosen = pick([candidate(name, claimed) for name, claimed in tokens.items()], rng)
        tokens[chosen.replica.replica_id] += rng.randint(10, 500)
    assert max(tokens.values()) - min(tokens.values()) < 5 * 500
