"""Reports the contents of a replica's prefix cache to the router: everything when a router registers the replica or asks for it, then
changes.

Changes wait a moment for others. Under load they come with every request, and a message costs both ends more than the blocks in it.
"""

from collections.abc import Callable
from itertools import count

from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.prefix_cache.block_ledger import BlockChange, BlockLedger
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import replica_messages

MESSAGE_BLOCKS = 2048
"""Maximum number of blocks in one message. The router processes it within a millisecond and makes other decisions between two messages."""


class BlockReporter:
    """Reports the blocks in a ledger.

    ledger: None if the engine has no prefix cache; then nothing is sent. send: sends a message to the router, or drops it if there is none.
    soon: calls the given function after a short delay.
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
        self._reporting = False
        self._changes: dict[int, bool] = {}  # by block: whether the cache holds it now
        if ledger is not None:
            ledger.listen(self._changed)

    @property
    def block_tokens(self) -> int:
        """Tokens per block; 0 if nothing is reported."""
        return 0 if self._ledger is None else self._ledger.block_tokens

    def report_all(self) -> None:
        """Reports all blocks, and from now on each change. Call it when a router has registered the replica or has missed a message."""
        if self._ledger is None:
            return
        self._reporting = True
        self._changes = {}
        blocks = self._ledger.blocks()
        for start in range(0, max(1, len(blocks)), MESSAGE_BLOCKS):
            part = blocks[start : start + MESSAGE_BLOCKS]
            self._send(replica_messages.block_news(BlockNews(next(self._numbers), stored=part, restarts=start == 0)))

    def stop(self) -> None:
        """Stops reporting, because the router is lost."""
        self._reporting = False
        self._changes = {}

    def _changed(self, change: BlockChange) -> None:
        if not self._reporting:
            return
        is_first = not self._changes
        self._changes |= dict.fromkeys(change.removed, False) | dict.fromkeys(change.stored, True)
        if is_first:
            self._soon(self._report_changes)

    def _report_changes(self) -> None:
        changes, self._changes = self._changes, {}
        if changes:
            stored = [block for block, is_there in changes.items() if is_there]
            removed = [block for block, is_there in changes.items() if not is_there]
            self._send(replica_messages.block_news(BlockNews(next(self._numbers), stored, removed)))
