"""Lays examples into sequences of one length, so that little is computed for padding, and none sees another.

Best fit, longest first: at most 11/9 of the fewest sequences that could hold them. Source: Johnson et al. 1974, worst-case performance
bounds for simple one-dimensional packing algorithms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deployments.jobs.finetune.examples import Example

SHORTEST_TOKENS = 256
"""A sequence is as long as the longest example, but no shorter than this: with shorter ones the matrices are too small to be worth it."""
UNUSED = -1


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences: arrays of (sequences, tokens). owners: the example that a token is of, UNUSED for padding. positions: within it.

    learnt: whether a token is to be predicted from those before it.
    """

    token_ids: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.token_ids)

    def taken(self, indices: Sequence[int]) -> "Packed":
        """Those sequences alone."""
        rows = list(indices)
        return Packed(self.token_ids[rows], self.owners[rows], self.positions[rows], self.learnt[rows])

    def examples(self) -> int:
        """That are in it."""
        return len(np.unique(self.owners[self.owners != UNUSED]))

    def tokens(self) -> int:
        """Without padding."""
        return int((self.owners != UNUSED).sum())


def pack(examples: Sequence[Example], padding_id: int) -> Packed:
    """All examples, each whole in one sequence."""
    length = max([SHORTEST_TOKENS, *(len(example.token_ids) for example in examples)])
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # a bit for each room that some sequence has
    for index in sorted(range(len(examples)), key=lambda one: (-len(examples[one].token_ids), one)):
        size = len(examples[index].token_ids)
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            place = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
        else:
            bins.append([])
            room, place = length, len(bins) - 1
        bins[place].append(index)
        with_room[room - size].append(place)
        rooms |= 1 << (room - size)
    return _laid(examples, bins, length, padding_id)


def _laid(examples: Sequence[Example], bins: Sequence[Sequence[int]], length: int, padding_id: int) -> Packed:
    shape = (len(bins), length)
    token_ids, owners = np.full(shape, padding_id, np.int64), np.full(shape, UNUSED, np.int64)
    positions, learnt = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, members in enumerate(bins):
        start = 0
        for index in members:
            example = examples[index]
            place = slice(start, start + len(example.token_ids))
            token_ids[row, place], owners[row, place] = example.token_ids, index
            positions[row, place], learnt[row, place] = np.arange(len(example.token_ids)), example.learnt
            start = place.stop
    return Packed(token_ids, owners, positions, learnt)


def attention_mask(owners: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which token sees which, (sequences, 1, tokens, tokens): those before it in its own example. Padding sees padding, since a row of
    nothing would be no number."""
    length = owners.shape[1]
    same = owners[:, :, None] == owners[:, None, :]
    visible: npt.NDArray[np.bool_] = same & np.tril(np.ones((length, length), np.bool_))
    return visible[:, None]
