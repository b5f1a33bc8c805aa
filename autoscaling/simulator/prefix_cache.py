"""The prefix cache of one simulated engine.

The cache keeps computed blocks until it needs space, and then evicts the least recently used block; of one prompt, the last blocks first. A
request's space is allocated when it starts and released when it ends.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class CacheChanges:
    """Changes of a cache's contents."""

    stored: list[int] = field(default_factory=list)
    """Names of blocks that were added."""
    removed: list[int] = field(default_factory=list)
    """Names of blocks that were evicted."""


@dataclass(slots=True)
class Allocation:
    """The part of the cache that a request occupies."""

    shared: list[int]
    """Names of blocks that other requests may share."""
    own_blocks: int
    """Number of further blocks that only this request uses."""


class PrefixCache:
    """The KV blocks of one engine."""

    def __init__(self, capacity_blocks: int) -> None:
        self._free_blocks = capacity_blocks
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._changes = CacheChanges()

    def cached_blocks(self, blocks: Sequence[int]) -> int:
        """Returns how many of the first blocks are cached, up to the first that is not."""
        return next((number for number, block in enumerate(blocks) if block not in self), len(blocks))

    def __contains__(self, block: int) -> bool:
        return block in self._users or block in self._idle

    def allocate(self, cached: Sequence[int], own_blocks: int) -> Allocation | None:
        """Uses the cached blocks and allocate `own_blocks` more, evicting others if needed. Return None if there is not enough space."""
        self._use(cached)
        if own_blocks > self._free_blocks + len(self._idle):
            self._unuse(cached)
            return None
        while self._free_blocks < own_blocks:
            block, _ = self._idle.popitem(last=False)
            self._changes.removed.append(block)
            self._free_blocks += 1
        self._free_blocks -= own_blocks
        return Allocation(list(cached), own_blocks)

    def share(self, allocation: Allocation, blocks: Sequence[int]) -> None:
        """Makes the computed blocks of a request available to others. Blocks that another request has shared meanwhile stay private."""
        new = [block for block in blocks if block not in self]
        self._use(new)
        self._changes.stored += new
        allocation.shared += new
        allocation.own_blocks -= len(new)

    def release(self, allocation: Allocation) -> None:
        """Releases the allocation of a request that has ended."""
        self._free_blocks += allocation.own_blocks
        self._unuse(allocation.shared)

    def take_changes(self) -> CacheChanges:
        """Returns the changes since the previous call."""
        changes, self._changes = self._changes, CacheChanges()
        return changes

    def _use(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1

    def _unuse(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                self._idle[block] = None
