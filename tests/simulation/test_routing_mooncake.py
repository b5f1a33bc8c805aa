"""The routing policies on Mooncake's recording and on adversarial traffic."""

from random import Random

import pytest

from tests.simulation import mooncake
from tests.simulation.engines import Work
from tests.simulation.routing import ROUND_ROBIN, Cluster, Traffic, run

needs_recording = pytest.mark.skipif(not mooncake.PATH.exists(), reason=f"Mooncake's recording is not at {mooncake.PATH}")


@needs_recording
def test_kv_aware_with_prefixes_that_fit_hits_like_one_unbounded_cache() -> None:
    assert mooncake.compare().hits_over_ideal >= 0.95


@needs_recording
def test_kv_aware_halves_the_ttft_of_cache_unaware_policies() -> None:
    found = mooncake.compare()
    assert found.ttft_p90_over_min_tokens <= 0.5
    assert found.ttft_p90_over_round_robin <= 0.5


@needs_recording
def test_kv_aware_keeps_every_replica_below_one_and_a_half_times_the_mean_load() -> None:
    assert mooncake.compare().kv_aware.highest_load <= 1.5


@needs_recording
@pytest.mark.parametrize("policy", ["kv-aware", "least-tokens", ROUND_ROBIN, "power-of-two", "prefix-affinity", "session"])
def test_every_policy_serves_every_request_of_the_recording(policy: str) -> None:
    outcome = run(mooncake.traffic(), mooncake.cluster(), policy)
    assert outcome.requests == len(mooncake.traffic().requests)


@needs_recording
def test_kv_aware_with_caches_far_too_small_still_hits_most() -> None:
    small = mooncake.cluster(copies=0.2)
    kv_aware, prefix_affinity, fewest_tokens = (
        run(mooncake.traffic(), small, policy) for policy in ("kv-aware", "prefix-affinity", "least-tokens")
    )
    assert kv_aware.hit_fraction > 2 * prefix_affinity.hit_fraction > 2 * fewest_tokens.hit_fraction
    assert kv_aware.ttft_p90_s < 0.5 * fewest_tokens.ttft_p90_s


BLOCK_TOKENS = 64


def one_hot_prefix(*, requests: int, shared_blocks: int, own_blocks: int) -> Traffic:
    """All requests share one prefix, which one replica already has cached."""
    rng = Random(0)
    shared, came_s, works = tuple(range(1, shared_blocks + 1)), 0.0, []
    for _ in range(requests):
        own = tuple(rng.getrandbits(60) for _ in range(own_blocks))
        works.append(Work(came_s, shared + own, BLOCK_TOKENS * (shared_blocks + own_blocks) + 1, 16))
        came_s += rng.expovariate(1.0) if came_s else 50.0
    return Traffic(works, BLOCK_TOKENS)


HOT = one_hot_prefix(requests=1500, shared_blocks=12, own_blocks=8)


@pytest.mark.parametrize("load", [1.0, 2.0])
def test_kv_aware_with_one_shared_prefix_has_no_hot_spot(load: float) -> None:
    outcome = run(HOT, Cluster(8, 4000, load), "kv-aware")
    assert outcome.highest_load <= 1.5
    assert outcome.hit_fraction > 0.9 * HOT.ideal_hit_fraction


def test_kv_aware_without_a_threshold_has_a_hot_spot() -> None:
    assert run(HOT, Cluster(8, 4000, 1.0), "kv-aware", imbalance_threshold_tokens=10**9).highest_load > 4
