"""Packing: every token occurs once per epoch, in an order that depends only on the seed."""

import numpy as np
import pytest

from tools.builtin_model.data.packing import BLOCK_TOKENS, Batch, DataPosition, Tokens, next_batch, pack_stream


def numbered_stream(blocks: int) -> Tokens:
    """Returns a stream in which each token is its own index. BLOCK_TOKENS * blocks must fit in 16 bits."""
    return np.arange(blocks * BLOCK_TOKENS, dtype=np.uint16)


def batches(stream: Tokens, count: int, sequence_tokens: int, *, position: DataPosition | None = None) -> list[Batch]:
    """Returns `count` consecutive batches of 4096 tokens."""
    found: list[Batch] = []
    position = position or DataPosition()
    for _ in range(count):
        found.append(next_batch(stream, position, sequence_tokens=sequence_tokens, batch_tokens=4096, seed=3))
        position = found[-1].next_position
    return found


def test_pack_stream_keeps_documents_intact_after_a_separator() -> None:
    stream = pack_stream([[5, 6], [7], [8, 9, 10]], separator_id=0, seed=1)
    documents = np.split(stream, np.flatnonzero(stream == 0))[1:]
    assert sorted(document.tolist() for document in documents) == [[0, 5, 6], [0, 7], [0, 8, 9, 10]]
    assert len(stream) == 9


def test_pack_stream_order_is_determined_by_the_seed() -> None:
    documents = [[index] for index in range(1, 50)]
    first, again, other = (pack_stream(documents, 0, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sequence_tokens", [256, 512, 2048])
def test_next_batch_one_epoch_has_every_token_once(sequence_tokens: int) -> None:
    blocks = 16
    tokens = np.concatenate([batch.tokens.ravel() for batch in batches(numbered_stream(blocks), blocks // 2, sequence_tokens)])
    assert np.array_equal(np.sort(tokens), np.arange(blocks * BLOCK_TOKENS))


def test_next_batch_short_sequences_come_from_different_blocks() -> None:
    (batch,) = batches(numbered_stream(16), 1, 512)
    assert batch.tokens.shape == (8, 512)
    assert len(set(batch.tokens[:, 0] // BLOCK_TOKENS)) == 8


def test_next_batch_new_context_length_takes_effect_after_the_group() -> None:
    stream = numbered_stream(32)
    (short,) = batches(stream, 1, 512)
    following = batches(stream, 4, 2048, position=short.next_position)
    assert [batch.tokens.shape[1] for batch in following] == [512, 512, 512, 2048]
    assert following[2].next_position == DataPosition(blocks=8)


def test_next_batch_restored_position_continues_identically() -> None:
    stream = numbered_stream(16)
    uninterrupted = batches(stream, 6, 512)
    resumed = batches(stream, 3, 512, position=uninterrupted[2].next_position)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(uninterrupted[3:], resumed, strict=True))


def test_next_batch_second_epoch_has_a_different_order() -> None:
    stream = numbered_stream(16)
    tokens = batches(stream, 16, 2048)
    assert not np.array_equal(tokens[0].tokens, tokens[8].tokens)


def test_next_batch_indivisible_sizes_are_rejected() -> None:
    with pytest.raises(ValueError, match="sequence_tokens 300 must divide"):
        batches(numbered_stream(4), 1, 300)
