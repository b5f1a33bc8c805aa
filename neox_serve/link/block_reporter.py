"""What a replica tells the router of its prefix cache: all of it when a router has registered it or asks, then each change."""

from collections.abc import Callable
from itertools import count

from neox_serve.core.block_index import BlockNews
from neox_serve.core.block_ledger import BlockChange, BlockLedger
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire import router_messages as wire

MESSAGE_BLOCKS = 2048
"""Of a large cache in one message: the router takes it in within a millisecond, and decides between two of them."""


class BlockReporter:
    """Reports a ledger. None where there is none: then nothing is ever sent. send: to the router, dropped where there is none."""

    def __init__(self, ledger: BlockLedger | None, send: Callable[[pb.ConnectReplicaRequest], None]) -> None:
        self._ledger = ledger
        self._send = send
        self._numbers = count()
        self._told = False
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
        blocks = self._ledger.blocks()
        for start in range(0, max(1, len(blocks)), MESSAGE_BLOCKS):
            part = blocks[start : start + MESSAGE_BLOCKS]
            self._send(wire.block_news(BlockNews(next(self._numbers), stored=part, restarts=start == 0)))

    def stop(self) -> None:
        """No router listens any more."""
        self._told = False

    def _changed(self, change: BlockChange) -> None:
        if self._told:
            self._send(wire.block_news(BlockNews(next(self._numbers), change.stored, change.removed)))
