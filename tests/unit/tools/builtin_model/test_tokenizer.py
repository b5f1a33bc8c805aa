"""The construction of the tokenizer, with a few lines of text."""

import pytest
from tokenizers import Tokenizer

from tools.builtin_model.tokenizer import (
    END_OF_TEXT_ID,
    PADDING_ID,
    SPACE_RUNS,
    encode_documents,
    train_tokenizer,
)

TEXTS = ["def add(first, second):\n        return first + second\n", "class Adder:\n    def add(self, value): ...\n"] * 4
VOCAB_SIZE = 300


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, VOCAB_SIZE)


def test_train_tokenizer_places_special_tokens_first_and_space_runs_last(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id("<|endoftext|>") == END_OF_TEXT_ID
    assert tokenizer.token_to_id("<|padding|>") == PADDING_ID
    assert [tokenizer.token_to_id(run) for run in SPACE_RUNS] == list(range(VOCAB_SIZE - 23, VOCAB_SIZE))
    assert [len(run) for run in SPACE_RUNS] == list(range(24, 1, -1))


@pytest.mark.parametrize("text", ["naïve café 😀", "日本語\tкод\r\n", "\x00\x7f\u200b", " " * 53 + "x", "<|endoftext"])
def test_encode_any_text_decodes_to_itself(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_encode_indentation_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" " * 8 + "x").tokens[0] == " " * 8


def test_encode_documents_keeps_the_order_across_batches(tokenizer: Tokenizer) -> None:
    expected = [tokenizer.encode(text).ids for text in TEXTS]
    assert list(encode_documents(tokenizer, TEXTS, batch=3)) == expected


def test_train_tokenizer_too_little_text_is_rejected() -> None:
    with pytest.raises(ValueError, match="too little text"):
        train_tokenizer(["a b"], 4096)
