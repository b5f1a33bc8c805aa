"""Simulated contents of a cluster's prefix caches for the router's core: conversations that grow turn by turn.

A conversation is cached on the replica that served it last. All prompts begin with the same 256 tokens, which every replica has cached.
Blocks have 32 tokens, as in vLLM on CPUs. A replica whose cache is full evicts a conversation.
"""

from collections.abc import Sequence
from itertools import count
from random import Random

from neox_serve.core.prefix_cache.block_index import BlockNews

BLOCK_TOKENS = 32
"""Number of tokens in a block."""
BLOCKS_PER_REPLICA = 1050
"""Approximate number of blocks in a full cache."""
_SYSTEM_BLOCKS = 8
_MAX_CONVERSATION_BLOCKS = 56
_TURN_BLOCKS = 8
_NEW_FRACTION = 0.3


class Caches:
    """The contents of all caches. Changes are numbered as those of a real replica."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._system = tuple(rng.getrandbits(64) for _ in range(_SYSTEM_BLOCKS))
        self._conversations: dict[str, list[tuple[int, ...]]] = {}
        self._numbers: dict[str, count[int]] = {}

    def started(self, replica_id: str, *, full: bool) -> BlockNews:
        """Returns the first message of a replica. If `full`, its cache is full of conversations."""
        self._numbers[replica_id] = count(1)
        mine = self._conversations[replica_id] = []
        stored = list(self._system)
        while full and len(stored) < BLOCKS_PER_REPLICA:
            mine.append(self._grown((), self._rng.randrange(_TURN_BLOCKS, _MAX_CONVERSATION_BLOCKS)))
            stored += mine[-1]
        return BlockNews(0, stored, restarts=True)

    def prompt(self) -> tuple[int, ...]:
        """Returns the blocks of the next request: another turn of a conversation, or a new conversation."""
        before: tuple[int, ...] = ()
        if self._rng.random() > _NEW_FRACTION:
            conversations = self._conversations[self._rng.choice(tuple(self._conversations))]
            before = self._rng.choice(conversations or [()])
        return self._system + self._grown(before if len(before) < _MAX_CONVERSATION_BLOCKS else (), _TURN_BLOCKS)

    def served(self, replica_id: str, prompt: Sequence[int]) -> BlockNews:
        """Returns the changes on the replica that has served a prompt."""
        conversation, mine = tuple(prompt[_SYSTEM_BLOCKS:]), self._conversations[replica_id]
        before = next((each for each in mine if each == conversation[: len(each)]), ())
        removed: tuple[int, ...] = ()
        if before:
            mine.remove(before)
        if sum(map(len, mine)) > BLOCKS_PER_REPLICA:
            removed = mine.pop(self._rng.randrange(len(mine)))
        mine.append(conversation)
        return BlockNews(next(self._numbers[replica_id]), conversation[len(before) :], removed)

    def gone(self, replica_id: str) -> None:
        """Forgets a replica that has left the cluster."""
        self._conversations.pop(replica_id, None)

    def _grown(self, conversation: tuple[int, ...], blocks: int) -> tuple[int, ...]:
        return (*conversation, *(self._rng.getrandbits(64) for _ in range(blocks)))
