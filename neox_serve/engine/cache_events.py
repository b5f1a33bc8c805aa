"""An engine's own names for the blocks of its prefix cache, turned into ours.

The engine tells tokens only when it stores a block; after that it calls it by its own key, also as the parent of later ones. So keys are
kept for as long as their blocks are. Two requests that compute the same block at once store it twice, and it is there until both copies are
removed. A block whose parent is not known, because something was missed, cannot be named and is left out.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.core.prefix_cache.block_ledger import BlockLedger


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks that follow each other. parent: the key of the block before the first; None where a prompt begins. salt: counts only there."""

    keys: Sequence[Hashable]
    parent: Hashable | None
    token_ids: Sequence[int]
    adapter: str | None = None
    salt: str | None = None


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks that are there no more."""

    keys: Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """No block is there any more."""


CacheEvent = BlocksStored | BlocksRemoved | BlocksCleared


class BlockNames:
    """Enters an engine's events into a ledger. model: the name under which the engine's model is served."""

    def __init__(self, ledger: BlockLedger, model: str) -> None:
        self._ledger = ledger
        self._model = model
        self._names: dict[Hashable, int] = {}
        self._further_copies: Counter[Hashable] = Counter()

    def take(self, events: Iterable[CacheEvent]) -> None:
        """What changed, in its order."""
        there: dict[int, bool] = {}
        for event in events:
            match event:
                case BlocksStored():
                    there.update((name, True) for name in self._store(event))
                case BlocksRemoved(keys):
                    there.update((name, False) for name in self._remove(keys))
                case BlocksCleared():
                    there.update((name, False) for name in self._remove_all())
        self._ledger.change(
            stored=[name for name, is_there in there.items() if is_there],
            removed=[name for name, is_there in there.items() if not is_there],
        )

    def forget(self) -> None:
        """Events were missed: what is known may be wrong."""
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
