"""Names for blocks of a prompt's tokens: a hash of the block and of all blocks before it. Equal names mean equal prefixes.

The names are our own, not vLLM's. A gateway computes them from token ids, whatever hash the engine uses, and they are equal in every
process and on every machine. The root hash separates prompts that must never share blocks: different models, adapters and tenants' cache
salts.

Names have 64 bits. Among a million blocks, two share a name in one of 30 million clusters. Then one prediction of a cache hit is wrong; no
output is affected.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import pack

_BYTES = 8
_TOKEN_BYTES = 4


def root(model: str, adapter: str | None = None, salt: str | None = None) -> int:
    """Returns the parent of the first block of every prompt for this model, adapter and cache salt."""
    parts = [part.encode() for part in (model, adapter or "", salt or "")]
    return _hash(b"".join(len(part).to_bytes(_BYTES, "little") + part for part in parts))


def extend(parent: int, token_ids: Sequence[int]) -> int:
    """Returns the name of the block with these tokens that follows `parent`, which is a block or a root."""
    return _hash(parent.to_bytes(_BYTES, "little") + _packed(token_ids))


def prompt_blocks(parent: int, token_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """Returns the names of a prompt's `len(token_ids) // block_tokens` full blocks, first to last. Takes about 1 us per block."""
    packed, size, names = _packed(token_ids), _TOKEN_BYTES * block_tokens, []
    for start in range(0, len(packed) - size + 1, size):
        parent = _hash(parent.to_bytes(_BYTES, "little") + packed[start : start + size])
        names.append(parent)
    return tuple(names)


def reusable_blocks(parent: int, token_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """Returns the names of the blocks that a prefix cache can serve. The engine always computes the last token of a prompt itself."""
    return prompt_blocks(parent, token_ids[:-1], block_tokens)


def _packed(token_ids: Sequence[int]) -> bytes:
    return pack(f"<{len(token_ids)}I", *token_ids)


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=_BYTES).digest(), "little")
