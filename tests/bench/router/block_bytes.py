"""Memory of the router's index of cached blocks."""

import tracemalloc
from random import Random

from neox_serve.core.prefix_cache.block_index import BlockIndex, BlockNews

_NEWS_BLOCKS = 64


def measure(blocks: int = 1_000_000, replicas: int = 1000) -> float:
    """Returns the bytes per block and replica. Blocks are added in small groups, as if prompts were being computed."""
    rng, index = Random(0), BlockIndex()
    tracemalloc.start()
    try:
        for number in range(replicas):
            index.take(f"replica-{number}", BlockNews(0, restarts=True))
        for turn in range(1, 1 + -(-blocks // (replicas * _NEWS_BLOCKS))):
            for number in range(replicas):
                index.take(f"replica-{number}", BlockNews(turn, [rng.getrandbits(64) for _ in range(_NEWS_BLOCKS)]))
        return tracemalloc.get_traced_memory()[0] / len(index)
    finally:
        tracemalloc.stop()
