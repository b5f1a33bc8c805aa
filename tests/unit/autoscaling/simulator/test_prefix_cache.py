"""The prefix cache of a simulated engine."""

from autoscaling.simulator.prefix_cache import PrefixCache


def test_full_cache_evicts_the_least_recently_used_block_but_none_in_use() -> None:
    cache = PrefixCache(4)
    for number in (1, 2):
        allocation = cache.allocate((), 1)
        assert allocation is not None
        cache.share(allocation, [number])
        cache.release(allocation)
    in_use = cache.allocate([1], 2)
    assert in_use is not None
    assert cache.allocate((), 2) is None
    other = cache.allocate((), 1)
    assert other is not None
    assert (1 in cache, 2 in cache) == (True, False)
