"""What a replica tells the router of its prefix cache: all of it when a router has registered it or asks, then what changes.

Changes wait a moment for others: under load they come with each request, and a message costs both ends more than the blocks in it.
"""

from collections.abc import Callable
from itertools import count

from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.prefix_cache.block_ledger import BlockChange, BlockLedger
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import replica_messages

MESSAGE_BLOCKS = 2048
"""Of a large cache in one message: the router takes it in within a millisecond, and decides between two of them."""


class BlockReporter:
    """Reports a ledger. None where there is none: then nothing is ever sent. send: to the router, dropped where there is none.

    soon: calls what it is given after a moment.
    """

    def __init__(
        self,
        ledger: BlockLedger | None,
        send: Callable[[pb.ConnectReplicaRequest], None],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._ledger = ledger
        self._send = send
        self._soon = soon
        self._numbers = count()
        self._told = False
        self._changes: dict[int, bool] = {}  # by block: whether it is there now
        if ledger is not None:
            ledger.listen(self._changed)

    @property
    def block_tokens(self) -> int:
        """Of a block; 0 where nothing is reported."""
        return 0 if self._ledger is None else self._ledger.block_tokens

    def tell_all(self) -> None:
        """The router has registered the replica, or has missed something: it is told all from the start, and changes from now on."""
        if self._ledger is None:
            return
        self._told = True
        self._changes = {}
        blocks = self._ledger.blocks()
        for start in range(0, max(1, len(blocks)), MESSAGE_BLOCKS):
            part = blocks[start : start + MESSAGE_BLOCKS]
            self._send(replica_messages.block_news(BlockNews(next(self._numbers), stored=part, restarts=start == 0)))

    def stop(self) -> None:
        """No router listens any more."""
        self._told = False
        self._changes = {}

    def _changed(self, change: BlockChange) -> None:
        if not self._told:
            return
        is_first = not self._changes
        self._changes |= dict.fromkeys(change.removed, False) | dict.fromkeys(change.stored, True)
        if is_first:
            self._soon(self._tell_changes)

    def _tell_changes(self) -> None:
        changes, self._changes = self._changes, {}
        if changes:
            stored = [block for block, is_there in changes.items() if is_there]
            removed = [block for block, is_there in changes.items() if not is_there]
            self._send(replica_messages.block_news(BlockNews(next(self._numbers), stored, removed)))
