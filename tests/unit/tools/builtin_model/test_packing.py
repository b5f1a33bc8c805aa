"""Packing: every token once an epoch, in an order that depends on the seed and on nothing else."""

import numpy as np
import pytest

from tools.builtin_model.packing import BLOCK_TOKENS, Batch, DataPosition, Tokens, next_batch, pack_stream


def numbered_stream(blocks: int) -> Tokens:
    """A stream in which each token is its own index; BLOCK_TOKENS * blocks must fit into 16 bits."""
    return np.arange(blocks * BLOCK_TOKENS, dtype=np.uint16)


def batches(stream: Tokens, count: int, sequence_tokens: int, *, position: DataPosition | None = None) -> list[Batch]:
    """`count` batches of 4096 tokens one after another."""
    found: list[Batch] = []
    position = position or DataPosition()
    for _ in range(count):
        found.append(next_batch(stream, position, sequence_tokens=sequence_tokens, batch_tokens=4096, seed=3))
        position = found[-1].next_position
    return found


def test_pack_stream_keeps_every_document_whole_behind_a_separator() -> None:
    stream = pack_stream([[5, 6], [7], [8, 9, 10]], separator_id=0, seed=1)
    documents = np.split(stream, np.flatnonzero(stream == 0))[1:]
    assert sorted(document.tolist() for document in documents) == [[0, 5, 6], [0, 7], [0, 8, 9, 10]]
    assert len(stream) == 9


def test_pack_stream_with_the_same_seed_is_the_same_and_with_another_differs() -> None:
    documents = [[index] for index in range(1, 50)]
    first, again, other = (pack_stream(documents, 0, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sequence_tokens", [256, 512, 2048])
def test_next_batch_over_one_epoch_deals_every_token_once(sequence_tokens: int) -> None:
    blocks = 16
    dealt = np.concatenate([batch.tokens.ravel() for batch in batches(numbered_stream(blocks), blocks // 2, sequence_tokens)])
    assert np.array_equal(np.sort(dealt), np.arange(blocks * BLOCK_TOKENS))


def test_next_batch_of_short_contexts_takes_each_sequence_from_another_block() -> None:
    (batch,) = batches(numbered_stream(16), 1, 512)
    assert batch.tokens.shape == (8, 512)
    assert len(set(batch.tokens[:, 0] // BLOCK_TOKENS)) == 8


def test_next_batch_asked_for_another_context_inside_a_group_finishes_the_group_first() -> None:
    stream = numbered_stream(32)
    (short,) = batches(stream, 1, 512)
    following = batches(stream, 4, 2048, position=short.next_position)
    assert [batch.tokens.shape[1] for batch in following] == [512, 512, 512, 2048]
    assert following[2].next_position == DataPosition(blocks=8)


def test_next_batch_from_a_restored_position_goes_on_as_before() -> None:
    stream = numbered_stream(16)
    straight = batches(stream, 6, 512)
    resumed = batches(stream, 3, 512, position=straight[2].next_position)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(straight[3:], resumed, strict=True))


def test_next_batch_in_the_second_epoch_uses_another_order() -> None:
    stream = numbered_stream(16)
    dealt = batches(stream, 16, 2048)
    assert not np.array_equal(dealt[0].tokens, dealt[8].tokens)


def test_next_batch_with_sizes_that_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence_tokens 300 must divide"):
        batches(numbered_stream(4), 1, 300)
