"""Translates the engine's keys of prefix cache blocks into block hashes that all replicas share.

The engine reports a block's tokens only when it stores the block. Later events refer to it by the engine's own key, also as the parent of
other blocks, so keys are kept as long as their blocks. Two requests that compute the same block at the same time store it twice, and it is
cached until both copies are removed. A block with an unknown parent, because an event was missed, has no known hash and is ignored.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.core.prefix_cache.block_ledger import BlockLedger


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Consecutive blocks were stored."""

    keys: Sequence[Hashable]
    parent: Hashable | None
    """Key of the block before the first; None at the beginning of a prompt."""
    token_ids: Sequence[int]
    """Tokens of all the blocks."""
    adapter: str | None = None
    salt: str | None = None
    """Cache salt of the request; relevant only at the beginning of a prompt."""


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks were removed."""

    keys: Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """All blocks were removed."""


CacheEvent = BlocksStored | BlocksRemoved | BlocksCleared


class BlockNames:
    """Applies an engine's events to a ledger. `model` is the name under which the engine's model is served."""

    def __init__(self, ledger: BlockLedger, model: str) -> None:
        self._ledger = ledger
        self._model = model
        self._names: dict[Hashable, int] = {}
        self._further_copies: Counter[Hashable] = Counter()

    def take(self, events: Iterable[CacheEvent]) -> None:
        """Applies events in the order in which they happened."""
        cached: dict[int, bool] = {}
        for event in events:
            match event:
                case BlocksStored():
                    cached.update((name, True) for name in self._store(event))
                case BlocksRemoved(keys):
                    cached.update((name, False) for name in self._remove(keys))
                case BlocksCleared():
                    cached.update((name, False) for name in self._remove_all())
        self._ledger.change(
            stored=[name for name, is_cached in cached.items() if is_cached],
            removed=[name for name, is_cached in cached.items() if not is_cached],
        )

    def forget(self) -> None:
        """Drops everything that is known. Call it if events were missed."""
        self._remove_all()
        self._ledger.clear()

    def _store(self, event: BlocksStored) -> Iterator[int]:
        parent = self._names.get(event.parent) if event.parent is not None else root(self._model, event.adapter, event.salt)
        if parent is None:
            return
        names = prompt_blocks(parent, event.token_ids, self._ledger.block_tokens)
        for key, name in zip(event.keys, names, strict=False):
            if key in self._names:
                self._further_copies[key] += 1
            else:
                self._names[key] = name
                yield name

    def _remove(self, keys: Iterable[Hashable]) -> Iterator[int]:
        for key in keys:
            copies = self._further_copies.pop(key, 0)
            if copies > 1:
                self._further_copies[key] = copies - 1
            if not copies and (name := self._names.pop(key, None)) is not None:
                yield name

    def _remove_all(self) -> list[int]:
        names = list(self._names.values())
        self._names.clear()
        self._further_copies.clear()
        return names
