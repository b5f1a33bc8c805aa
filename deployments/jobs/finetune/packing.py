"""Packs examples into sequences of equal length, so that little is computed for padding. Examples in a sequence do not see each other.

Best fit, longest first, uses at most 11/9 of the smallest possible number of sequences. Source: Johnson et al. 1974, worst-case performance
bounds for simple one-dimensional packing algorithms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deployments.jobs.finetune.examples import Example

MIN_SEQUENCE_TOKENS = 256
"""A sequence is as long as the longest example, but at least this long, since shorter ones make matrix products inefficient."""
UNUSED = -1
"""The owner of padding."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed sequences. All arrays have the shape (sequences, tokens)."""

    token_ids: npt.NDArray[np.int64]
    """Token ids, including padding."""
    owners: npt.NDArray[np.int64]
    """Index of the example that each token belongs to; UNUSED for padding."""
    positions: npt.NDArray[np.int64]
    """Position of each token within its example."""
    learned: npt.NDArray[np.bool_]
    """Whether each token is predicted from those before it."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def taken(self, indices: Sequence[int]) -> "Packed":
        """Returns some of the sequences."""
        rows = list(indices)
        return Packed(self.token_ids[rows], self.owners[rows], self.positions[rows], self.learned[rows])

    def examples(self) -> int:
        """Returns the number of examples."""
        return len(np.unique(self.owners[self.owners != UNUSED]))

    def tokens(self) -> int:
        """Returns the number of tokens, without padding."""
        return int((self.owners != UNUSED).sum())


def pack(examples: Sequence[Example], padding_id: int) -> Packed:
    """Packs all examples, each into a single sequence."""
    length = max([MIN_SEQUENCE_TOKENS, *(len(example.token_ids) for example in examples)])
    bins: list[list[int]] = []
    by_free: list[list[int]] = [[] for _ in range(length + 1)]
    free_sizes = 0  # a bit for each amount of free space that some sequence has
    for index in sorted(range(len(examples)), key=lambda one: (-len(examples[one].token_ids), one)):
        size = len(examples[index].token_ids)
        fitting = free_sizes >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            place = by_free[free].pop()
            free_sizes ^= 0 if by_free[free] else 1 << free
        else:
            bins.append([])
            free, place = length, len(bins) - 1
        bins[place].append(index)
        by_free[free - size].append(place)
        free_sizes |= 1 << (free - size)
    return _laid(examples, bins, length, padding_id)


def _laid(examples: Sequence[Example], bins: Sequence[Sequence[int]], length: int, padding_id: int) -> Packed:
    shape = (len(bins), length)
    token_ids, owners = np.full(shape, padding_id, np.int64), np.full(shape, UNUSED, np.int64)
    positions, learned = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, members in enumerate(bins):
        start = 0
        for index in members:
            example = examples[index]
            place = slice(start, start + len(example.token_ids))
            token_ids[row, place], owners[row, place] = example.token_ids, index
            positions[row, place], learned[row, place] = np.arange(len(example.token_ids)), example.learned
            start = place.stop
    return Packed(token_ids, owners, positions, learned)


def attention_mask(owners: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Returns which token sees which, as (sequences, 1, tokens, tokens): a token sees those before it in its own example.

    Padding sees padding, since attention over nothing would be NaN.
    """
    length = owners.shape[1]
    same = owners[:, :, None] == owners[:, None, :]
    visible: npt.NDArray[np.bool_] = same & np.tril(np.ones((length, length), np.bool_))
    return visible[:, None]
