"""Packing of documents into one token stream, and batches of its blocks in a fixed shuffled order.

Documents are shuffled, each preceded by `<|endoftext|>`, and concatenated. The stream is divided into blocks of BLOCK_TOKENS, and an epoch
visits the blocks in an order that depends on (seed, epoch). Batches with short contexts divide a group of blocks into columns, so that the
sequences of one batch come from different blocks. The position in the data is therefore only a few numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 2048
"""Number of tokens in a block."""

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Streams:
    """The packed corpus."""

    everything: Tokens
    """The whole corpus."""
    annealing: Tokens
    """The part for the annealing phase, which is closest to the held-out text."""


@dataclass(frozen=True, slots=True)
class DataPosition:
    """A position in the sequence of batches. A group of blocks is completed with the context length with which it was started."""

    blocks: int = 0
    """Number of blocks that have been consumed."""
    column: int = 0
    """Next column of the current group."""
    sequence_tokens: int = 0
    """Context length of the current group; 0 between groups."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of sequences."""

    tokens: npt.NDArray[np.int64]
    """Token ids of shape (sequences, sequence_tokens)."""
    next_position: DataPosition
    """The position after the batch."""


def pack_stream(documents: Iterable[list[int]], separator_id: int, seed: int) -> Tokens:
    """Concatenates the documents in a random order, each preceded by `separator_id`."""
    pieces = [np.array([separator_id, *ids], dtype=np.uint16) for ids in documents]
    order = np.random.default_rng(seed).permutation(len(pieces))
    return np.concatenate([pieces[index] for index in order])


def block_at(stream: Tokens, ordinal: int, seed: int) -> Tokens:
    """Returns the block that is visited at position `ordinal`, counted across epochs."""
    blocks = len(stream) // BLOCK_TOKENS
    epoch, within = divmod(ordinal, blocks)
    index = int(np.random.default_rng([seed, epoch]).permutation(blocks)[within])
    return stream[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]


def next_batch(stream: Tokens, position: DataPosition, *, sequence_tokens: int, batch_tokens: int, seed: int) -> Batch:
    """Returns the batch at `position`: `batch_tokens / sequence_tokens` sequences, each from a different block.

    `sequence_tokens` takes effect when a new group begins. Until then, the length of the current group is used.
    Raises ValueError if `sequence_tokens` does not divide BLOCK_TOKENS and `batch_tokens`.
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
