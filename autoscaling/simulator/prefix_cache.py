"""The prefix cache of one simulated engine.

It keeps what was computed until room is needed; then the block that was used longest ago goes, the last ones of a prompt before its first.
A request's room is taken when it starts and given back when it ends.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class CacheNews:
    """Blocks that came and went."""

    stored: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Room:
    """What a request has of the cache: named blocks that others may share, and blocks of its own."""

    shared: list[int]
    own_blocks: int


class PrefixCache:
    """Blocks of one engine."""

    def __init__(self, capacity_blocks: int) -> None:
        self._free_blocks = capacity_blocks
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._news = CacheNews()

    def held(self, blocks: Sequence[int]) -> int:
        """The first blocks that are there, up to the first that is not."""
        return next((number for number, block in enumerate(blocks) if block not in self), len(blocks))

    def __contains__(self, block: int) -> bool:
        return block in self._users or block in self._idle

    def take(self, held: Sequence[int], own_blocks: int) -> Room | None:
        """Takes blocks that are there into use, and makes room for others; None where there is not enough."""
        self._use(held)
        if own_blocks > self._free_blocks + len(self._idle):
            self._leave(held)
            return None
        while self._free_blocks < own_blocks:
            block, _ = self._idle.popitem(last=False)
            self._news.removed.append(block)
            self._free_blocks += 1
        self._free_blocks -= own_blocks
        return Room(list(held), own_blocks)

    def share(self, room: Room, blocks: Sequence[int]) -> None:
        """A request has computed blocks: others may use them. What another request has computed meanwhile stays its own."""
        new = [block for block in blocks if block not in self]
        self._use(new)
        self._news.stored += new
        room.shared += new
        room.own_blocks -= len(new)

    def release(self, room: Room) -> None:
        """A request has ended."""
        self._free_blocks += room.own_blocks
        self._leave(room.shared)

    def take_news(self) -> CacheNews:
        """What has changed since the last call."""
        news, self._news = self._news, CacheNews()
        return news

    def _use(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1

    def _leave(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                self._idle[block] = None
