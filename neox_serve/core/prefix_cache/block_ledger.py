"""The contents of one engine's prefix cache, as block names from `block_hashes`, with a listener for changes.

An engine that reports its cache keeps a ledger from its start, so that a listener that connects later can read the complete contents.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockChange:
    """Blocks that were stored and blocks that were removed. No block is in both."""

    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


class BlockLedger:
    """The blocks in one prefix cache."""

    def __init__(self, block_tokens: int) -> None:
        """block_tokens: number of tokens per block."""
        self.block_tokens = block_tokens
        self._blocks: set[int] = set()
        self._on_change: Callable[[BlockChange], None] = lambda _change: None

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def blocks(self) -> tuple[int, ...]:
        """Returns all blocks in the cache, in no particular order."""
        return tuple(self._blocks)

    def listen(self, on_change: Callable[[BlockChange], None]) -> None:
        """Calls `on_change` for every change from now on. It replaces the previous listener."""
        self._on_change = on_change

    def change(self, *, stored: Iterable[int] = (), removed: Iterable[int] = ()) -> None:
        """Removes blocks, then stores others. The listener is called only if the contents change."""
        added, dropped = dict.fromkeys(stored), set(removed)
        change = BlockChange(
            tuple(block for block in added if block not in self._blocks),
            tuple(block for block in dropped if block in self._blocks and block not in added),
        )
        self._blocks.difference_update(change.removed)
        self._blocks.update(change.stored)
        if change.stored or change.removed:
            self._on_change(change)

    def clear(self) -> None:
        """Removes all blocks."""
        self.change(removed=self.blocks())
