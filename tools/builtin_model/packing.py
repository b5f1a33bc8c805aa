"""Packs documents into one token stream and deals blocks of it out in a fixed shuffled order.

Documents are shuffled, each preceded by `<|endoftext|>`, and concatenated. The stream is cut into blocks of
BLOCK_TOKENS; an epoch visits the blocks in an order drawn from (seed, epoch). Short-context batches cut a group of
blocks into columns, so the sequences of one batch come from different blocks. Where training stands is two numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 2048

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Streams:
    """The packed corpus, and its part nearest to the held-out text, which the annealing phase trains on."""

    everything: Tokens
    annealing: Tokens


@dataclass(frozen=True, slots=True)
class DataPosition:
    """How many blocks have been consumed, and which column of the current group comes next.

    A group is finished with the context length it was begun with: `sequence_tokens`, 0 between groups.
    """

    blocks: int = 0
    column: int = 0
    sequence_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids of shape (sequences, sequence_tokens) and the position after them."""

    tokens: npt.NDArray[np.int64]
    next_position: DataPosition


def pack_stream(documents: Iterable[list[int]], separator_id: int, seed: int) -> Tokens:
    """Concatenate documents in an order drawn from `seed`, `separator_id` before each."""
    pieces = [np.array([separator_id, *ids], dtype=np.uint16) for ids in documents]
    order = np.random.default_rng(seed).permutation(len(pieces))
    return np.concatenate([pieces[index] for index in order])


def block_at(stream: Tokens, ordinal: int, seed: int) -> Tokens:
    """The `ordinal`-th block of training, counted across epochs."""
    blocks = len(stream) // BLOCK_TOKENS
    epoch, within = divmod(ordinal, blocks)
    index = int(np.random.default_rng([seed, epoch]).permutation(blocks)[within])
    return stream[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]


def next_batch(stream: Tokens, position: DataPosition, *, sequence_tokens: int, batch_tokens: int, seed: int) -> Batch:
    """The batch at `position`: `batch_tokens / sequence_tokens` sequences, each from a different block.

    `sequence_tokens` takes effect when a new group begins; until then the group's own length holds.

    Raises:
        ValueError: the sizes do not divide.
    """
    sequence_tokens = position.sequence_tokens or sequence_tokens
    if BLOCK_TOKENS % sequence_tokens or batch_tokens % sequence_tokens:
        raise ValueError(f"sequence_tokens {sequence_tokens} must divide {BLOCK_TOKENS} and batch_tokens {batch_tokens}")
    sequences = batch_tokens // sequence_tokens
    start = position.column * sequence_tokens
    rows = [block_at(stream, position.blocks + row, seed)[start : start + sequence_tokens] for row in range(sequences)]
    if start + sequence_tokens < BLOCK_TOKENS:
        following = DataPosition(position.blocks, position.column + 1, sequence_tokens)
    else:
        following = DataPosition(position.blocks + sequences)
    return Batch(np.stack(rows).astype(np.int64), following)
