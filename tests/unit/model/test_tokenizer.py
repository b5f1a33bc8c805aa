"""Encoding and decoding of any text."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.model.tokenizer import MAX_CHARACTERS_ON_THE_LOOP, Tokenizer, TokenizerError
from tests.fakes.gateways import builtin_facts, builtin_tokenizer

texts = st.text(st.characters(codec="utf-8"), max_size=200)


@given(texts)
def test_decode_of_encode_is_the_text_in_composed_form(text: str) -> None:
    tokenizer = builtin_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@given(texts)
def test_min_tokens_is_a_lower_bound(text: str) -> None:
    tokenizer = builtin_tokenizer()
    assert tokenizer.min_tokens(text) <= len(tokenizer.encode(text))


@given(texts)
def test_offsets_cover_the_text_in_code_points(text: str) -> None:
    ids, offsets = builtin_tokenizer().encode_with_offsets(text)
    assert len(ids) == len(offsets)
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered == set(range(len(text)))


def test_long_text_gives_the_same_ids_on_either_path() -> None:
    tokenizer = builtin_tokenizer()
    line = "for item in items:\n        print(item)\n"
    text = line * (MAX_CHARACTERS_ON_THE_LOOP // len(line) + 2)
    assert tokenizer.encode(text) == tokenizer.encode(line) * (len(text) // len(line))


def test_vocabulary_fits_the_model() -> None:
    assert builtin_tokenizer().vocabulary_size <= builtin_facts().vocabulary_size


def test_folder_without_tokenizer_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
