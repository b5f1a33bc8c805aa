import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deployments.jobs.finetune.examples import Example
from deployments.jobs.finetune.packing import MIN_SEQUENCE_TOKENS, UNUSED, attention_mask, pack

PADDING = 1


def example(length: int, start: int = 2) -> Example:
    return Example(tuple(range(start, start + length)), (False, *[True] * (length - 1)))


@given(st.lists(st.integers(2, 400), min_size=1, max_size=60))
def test_every_example_is_packed_once_into_one_sequence(lengths: list[int]) -> None:
    examples = [example(length, start) for start, length in enumerate(lengths, start=2)]
    packed = pack(examples, PADDING)
    assert packed.token_ids.shape[1] == max(MIN_SEQUENCE_TOKENS, *lengths)
    assert packed.tokens() == sum(lengths)
    assert packed.examples() == len(examples)
    for index, one in enumerate(examples):
        rows, columns = np.nonzero(packed.owners == index)
        assert len(set(rows.tolist())) == 1
        assert tuple(packed.token_ids[rows, columns]) == one.token_ids
        assert packed.positions[rows, columns].tolist() == list(range(len(one.token_ids)))
        assert tuple(packed.learned[rows, columns]) == one.learned
    assert not packed.learned[packed.owners == UNUSED].any()


@given(st.lists(st.integers(2, 400), min_size=1, max_size=60))
def test_number_of_sequences_is_within_the_bound(lengths: list[int]) -> None:
    packed = pack([example(length) for length in lengths], PADDING)
    fewest = -(-sum(lengths) // packed.token_ids.shape[1])
    half_empty = sum((packed.owners[row] != UNUSED).sum() * 2 < packed.token_ids.shape[1] for row in range(len(packed)))
    assert len(packed) <= 2 * fewest
    assert half_empty <= 1


def test_tokens_only_see_earlier_tokens_of_their_own_example() -> None:
    mask = attention_mask(np.array([[0, 0, 1, 1, UNUSED]]))
    assert mask.shape == (1, 1, 5, 5)
    seen = [np.flatnonzero(row).tolist() for row in mask[0, 0]]
    assert seen == [[0], [0, 1], [2], [2, 3], [4]]
