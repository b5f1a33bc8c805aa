"""What names a block of a prompt's tokens: a hash of the block and of all before it, so that equal names mean equal prefixes.

The names are our own, not vLLM's: a gateway can compute them from token ids alone, whatever the engine hashes with. They are equal in every
process and on every machine. The root keeps apart what must never be taken for the same: models, adapters, and the cache salts of tenants.

64 bits: among a million blocks two share a name once in 30 million clusters, and then one prediction is wrong, no answer.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import pack

_BYTES = 8
_TOKEN_BYTES = 4


def root(model: str, adapter: str | None = None, salt: str | None = None) -> int:
    """The parent of every first block of prompts to a model, with an adapter, under a cache salt."""
    parts = [part.encode() for part in (model, adapter or "", salt or "")]
    return _hash(b"".join(len(part).to_bytes(_BYTES, "little") + part for part in parts))


def extend(parent: int, token_ids: Sequence[int]) -> int:
    """The name of a block of these tokens after the block, or the root, of that name."""
    return _hash(parent.to_bytes(_BYTES, "little") + _packed(token_ids))


def prompt_blocks(parent: int, token_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """The names of all full blocks of a prompt, first to last: `len(token_ids) // block_tokens` of them. A microsecond a block."""
    packed, size, names = _packed(token_ids), _TOKEN_BYTES * block_tokens, []
    for start in range(0, len(packed) - size + 1, size):
        parent = _hash(parent.to_bytes(_BYTES, "little") + packed[start : start + size])
        names.append(parent)
    return tuple(names)


def reusable_blocks(parent: int, token_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """The names of the blocks that a cache can spare an engine: of a prompt it must always compute the last token."""
    return prompt_blocks(parent, token_ids[:-1], block_tokens)


def _packed(token_ids: Sequence[int]) -> bytes:
    return pack(f"<{len(token_ids)}I", *token_ids)


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=_BYTES).digest(), "little")
