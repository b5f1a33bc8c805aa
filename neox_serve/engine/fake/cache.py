"""The fake engine's prefix cache: it records which blocks would be cached, without keys and values."""

from collections import OrderedDict

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.core.types import GenerationRequest


class FakeCache:
    """Keeps the most recently used prompt blocks, up to a capacity. `model` is the name under which the engine's model is served."""

    def __init__(self, model: str, *, block_tokens: int, capacity_blocks: int) -> None:
        self.ledger = BlockLedger(block_tokens)
        self._model = model
        self._capacity_blocks = capacity_blocks
        self._used: OrderedDict[int, None] = OrderedDict()

    def serve(self, request: GenerationRequest) -> int:
        """Adds a prompt and returns how many of its tokens were cached. The last token is always computed."""
        block_tokens, ids = self.ledger.block_tokens, request.prompt_token_ids
        blocks = prompt_blocks(root(self._model, request.adapter, request.cache_salt), ids, block_tokens)
        held = next((number for number, block in enumerate(blocks) if block not in self.ledger), len(blocks))
        for block in reversed(blocks):  # so that a prompt's last block is evicted before its first
            self._used[block] = None
            self._used.move_to_end(block)
        removed = [self._used.popitem(last=False)[0] for _ in range(len(self._used) - self._capacity_blocks)]
        self.ledger.change(stored=blocks, removed=removed)
        return min(held, (len(ids) - 1) // block_tokens) * block_tokens
