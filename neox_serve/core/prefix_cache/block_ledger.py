"""What the prefix cache of one engine holds, by the names of `block_hashes`, and who is to know of changes.

An engine that knows its cache keeps one of these, from its start; so whoever asks later can be told all of it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockChange:
    """Blocks that came and went. No block is in both."""

    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


class BlockLedger:
    """The blocks of one cache. block_tokens: of each block."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._blocks: set[int] = set()
        self._tell: Callable[[BlockChange], None] = lambda _change: None

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def blocks(self) -> tuple[int, ...]:
        """All that is there."""
        return tuple(self._blocks)

    def listen(self, tell: Callable[[BlockChange], None]) -> None:
        """Tells of each change from now on, and nobody else any more."""
        self._tell = tell

    def change(self, *, stored: Iterable[int] = (), removed: Iterable[int] = ()) -> None:
        """Blocks went, then others came; what changes nothing is not told."""
        came, went = dict.fromkeys(stored), set(removed)
        news = BlockChange(
            tuple(block for block in came if block not in self._blocks),
            tuple(block for block in went if block in self._blocks and block not in came),
        )
        self._blocks.difference_update(news.removed)
        self._blocks.update(news.stored)
        if news.stored or news.removed:
            self._tell(news)

    def clear(self) -> None:
        """Nothing is there, or nothing is known to be."""
        self.change(removed=self.blocks())
