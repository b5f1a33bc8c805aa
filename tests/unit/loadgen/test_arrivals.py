"""Arrival processes: statistics of the times for given seeds."""

from itertools import islice, pairwise
from random import Random
from statistics import fmean, pstdev

import pytest

from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop, Replay
from neox_serve.loadgen.load import Load, scheduled
from neox_serve.loadgen.workloads import Synthetic

COUNT = 20_000


def gaps_s(arrivals: OpenLoop, seed: int = 1) -> list[float]:
    times_s = list(islice(arrivals.times_s(Random(seed)), COUNT))
    return [later - earlier for earlier, later in pairwise(times_s)]


def test_arrivals_of_a_constant_rate_are_evenly_spaced() -> None:
    assert list(islice(OpenLoop(4.0, cv=0.0).times_s(Random(1)), 4)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.5])
def test_arrivals_have_the_given_rate_and_variation(cv: float) -> None:
    gaps = gaps_s(OpenLoop(8.0, cv))
    assert fmean(gaps) == pytest.approx(1 / 8.0, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.05)


def test_arrivals_of_a_poisson_process_are_exponentially_spaced() -> None:
    gaps = sorted(gaps_s(OpenLoop(2.0)))
    for fraction, expected_s in ((0.5, 0.3466), (0.9, 1.1513), (0.99, 2.3026)):
        assert gaps[int(fraction * len(gaps))] == pytest.approx(expected_s, rel=0.06)


def test_arrivals_depend_only_on_the_seed() -> None:
    assert gaps_s(OpenLoop(8.0)) == gaps_s(OpenLoop(8.0))
    assert gaps_s(OpenLoop(8.0)) != gaps_s(OpenLoop(8.0), seed=2)


def test_replay_starts_at_once_and_scales_the_gaps_by_the_speed() -> None:
    assert list(Replay().times_s([5.0, 6.0, 9.0])) == [0.0, 1.0, 4.0]
    assert list(Replay(speed=2.0).times_s([5.0, 6.0, 9.0])) == [0.0, 0.5, 2.0]


def test_schedule_ends_with_the_workload_or_the_duration() -> None:
    assert [at_s for at_s, _ in scheduled(Load(Synthetic("w", 2), OpenLoop(4.0, cv=0.0)))] == [0.0, 0.25]
    endless = Load(Synthetic("w", None), OpenLoop(4.0, cv=0.0), duration_s=1.0)
    assert [at_s for at_s, _ in scheduled(endless)] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClosedLoop(0), "streams 0"),
        (lambda: OpenLoop(0.0), "rate_rps 0"),
        (lambda: OpenLoop(1.0, cv=-1.0), "cv -1"),
        (lambda: Replay(speed=0.0), "speed 0"),
        (lambda: Load(Synthetic("w", 1), ClosedLoop(1), duration_s=0.0), "duration_s 0"),
        (lambda: Load(Synthetic("w", 1), ClosedLoop(1), max_in_flight=3), "open loops only"),
        (lambda: Load(Synthetic("w", 1), OpenLoop(1.0), max_in_flight=0), "max_in_flight 0"),
    ],
)
def test_impossible_values_are_rejected(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
