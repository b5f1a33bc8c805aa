"""The order in which systems are measured, and their workloads."""

import pytest

from tests.bench.order import Visit, alternating
from tests.bench.workloads import Workload


def workload(requests: int = 4) -> Workload:
    """Returns a small workload."""
    return Workload("w", streams=2, requests=requests, prompt_tokens=8, output_tokens=32, vocabulary_size=100)


def test_alternating_two_systems_two_rounds_is_abba() -> None:
    assert alternating(["a", "b"], 2) == [Visit("a", (0,)), Visit("b", (0, 1)), Visit("a", (1,))]


def test_alternating_three_systems_three_rounds_reverses_each_round() -> None:
    assert [(visit.system, visit.rounds) for visit in alternating(["a", "b", "c"], 3)] == [
        ("a", (0,)),
        ("b", (0,)),
        ("c", (0, 1)),
        ("b", (1,)),
        ("a", (1, 2)),
        ("b", (2,)),
        ("c", (2,)),
    ]


def test_alternating_one_system_is_started_once() -> None:
    assert alternating(["a"], 3) == [Visit("a", (0, 1, 2))]


@pytest.mark.parametrize("rounds", range(1, 7))
def test_alternating_measures_every_system_once_in_every_round(rounds: int) -> None:
    measured = sorted((visit.system, number) for visit in alternating(["a", "b", "c"], rounds) for number in visit.rounds)
    assert measured == [(system, number) for system in "abc" for number in range(rounds)]


def test_prompts_are_the_same_for_every_system_in_a_round() -> None:
    assert list(workload().in_round(1).prompts().requests()) == list(workload().in_round(1).prompts().requests())


def test_prompts_of_different_rounds_have_no_common_prefix() -> None:
    rounds = (workload().prompts(), workload().in_round(1).prompts(), workload().warm_up().workload)
    first, second, warm_up = ({request.prompt for request in each.requests()} for each in rounds)
    assert len(first | second | warm_up) == len(first) + len(second) + len(warm_up)


def test_workload_fewer_requests_than_streams_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one request per stream"):
        workload(requests=1)
