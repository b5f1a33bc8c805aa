"""Detokenization: for any text in any language the joined pieces equal the whole, and stop sequences match as in the whole text."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from neox_serve.core.types import Stopping
from neox_serve.engine.detokenizer import TextStream, TokenTable

NEOX_TOKENIZER = Path(__file__).parents[4] / "shared" / "data" / "gpt-neox-20b-tokenizer.json"
SENTENCES = (
    "def f(n):\n        return n  # indented",
    "中文字符:你好,世界。",
    "نص عربي للاختبار",
    "हिन्दी में एक वाक्य",
    "emoji 👩‍👩‍👧‍👦 🇩🇪 👍🏽 done",
    "ไทย ភាសាខ្មែរ ქართული",
    "mixed 日本語 и русский\t\u200bzero\ufffdwidth",
)
LONG = Stopping(max_tokens=100_000)


def one_byte(token_id: int) -> bytes:
    """Returns the bytes of a token in a vocabulary of the 256 bytes."""
    return bytes((token_id,))


def pieces(stream: TextStream, token_ids: list[int], size: int = 1) -> list[str]:
    return [stream.push(token_ids[start : start + size]).text for start in range(0, len(token_ids), size)] + [stream.finish()]


def complete(text: bytes) -> str:
    """Returns a byte string as text, without an incomplete character at its end."""
    while text and (tail := text[-3:]) and any(_is_prefix(tail[n:]) for n in range(len(tail))):
        text = text[: -next(len(tail) - n for n in range(len(tail)) if _is_prefix(tail[n:]))]
        break
    return text.decode("utf-8", "replace")


def _is_prefix(text: bytes) -> bool:
    """Returns whether the bytes are the beginning of one character, but not all of it."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and error.start == 0
    return False


@given(st.text(), st.integers(1, 5))
def test_push_of_any_text_in_pieces_joins_to_the_text(text: str, size: int) -> None:
    assert "".join(pieces(TextStream(one_byte, LONG), list(text.encode()), size)) == text


@example(b"\xed\xa0")
@given(st.binary(max_size=40))
def test_push_of_any_bytes_joins_to_their_decoding_without_an_incomplete_end(data: bytes) -> None:
    assert "".join(pieces(TextStream(one_byte, LONG), list(data))) == complete(data)


@given(st.text(alphabet="é中👍a", min_size=1), st.data())
def test_push_of_text_cut_inside_a_character_omits_the_character(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    assert "".join(pieces(TextStream(one_byte, LONG), list(raw[:cut]))) == raw[:cut].decode("utf-8", "ignore")


@given(
    st.text(alphabet="ab中", max_size=30),
    st.lists(st.text(alphabet="ab中", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
    st.integers(1, 4),
)
def test_push_with_stop_sequences_matches_as_a_search_of_the_whole_text(text: str, stops: list[str], include: bool, size: int) -> None:
    stream = TextStream(one_byte, Stopping(max_tokens=1000, stop_sequences=tuple(stops), include_stop_in_output=include))
    shown, matched, raw = "", None, list(text.encode())
    for start in range(0, len(raw), size):
        piece = stream.push(raw[start : start + size])
        shown += piece.text
        if piece.stop is not None:
            matched = piece.stop
            break
    else:
        shown += stream.finish()
    ends = [(text.find(stop) + len(stop), order) for order, stop in enumerate(stops) if stop in text]
    if not ends:
        assert (shown, matched) == (text, None)
        return
    end, order = min(ends)
    assert matched == stops[order]
    assert shown == (text[:end] if include else text[: end - len(stops[order])])


def test_push_ignores_stop_sequences_within_min_tokens() -> None:
    stream = TextStream(one_byte, Stopping(max_tokens=100, min_tokens=3, stop_sequences=("ab",)))
    assert stream.push(list(b"ab")).stop is None
    piece = stream.push(list(b"cabz"))
    assert (piece.text, piece.tokens, piece.stop) == ("c", 3, "ab")


def test_push_completes_a_character_that_the_prompt_began() -> None:
    prompt, output = "x中".encode()[:-1], "中".encode()[-1:]
    assert TextStream(one_byte, LONG, list(prompt)).push(list(output)).text == "中"


def test_push_with_hide_last_counts_the_last_token_but_omits_its_text() -> None:
    piece = TextStream(one_byte, LONG).push(list(b"ab"), hide_last=True)
    assert (piece.text, piece.tokens) == ("a", 2)


def test_push_holds_back_the_possible_beginning_of_a_stop_sequence() -> None:
    stream = TextStream(one_byte, Stopping(max_tokens=100, stop_sequences=("STOP",)))
    assert stream.push(list(b"go ST")).text == "go "
    assert stream.finish() == "ST"


@pytest.fixture(scope="module")
def neox() -> Tokenizer:
    if not NEOX_TOKENIZER.is_file():
        pytest.skip(f"the GPT-NeoX-20B tokenizer is not at {NEOX_TOKENIZER}")
    return Tokenizer.from_file(str(NEOX_TOKENIZER))


@pytest.fixture(scope="module")
def table(neox: Tokenizer) -> TokenTable:
    return TokenTable.from_tokenizer_json(json.loads(neox.to_str()))


@pytest.mark.parametrize("text", SENTENCES)
def test_neox_tokenizer_text_after_every_token_is_a_prefix_of_the_text(neox: Tokenizer, table: TokenTable, text: str) -> None:
    ids = neox.encode(text, add_special_tokens=False).ids
    whole = neox.decode(ids)
    assert "".join(pieces(TextStream(table.text_bytes, LONG), ids)) == whole
    for cut in range(len(ids)):
        shown = "".join(pieces(TextStream(table.text_bytes, LONG), ids[:cut]))
        assert whole.startswith(shown)
        assert shown == complete(b"".join(map(table.text_bytes, ids[:cut])))


@given(st.data())
def test_neox_tokenizer_any_ids_give_the_same_text_as_the_tokenizer(neox: Tokenizer, table: TokenTable, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, neox.get_vocab_size() - 1), max_size=30))
    text = "".join(pieces(TextStream(table.text_bytes, LONG), ids))
    assert neox.decode(ids).rstrip("\ufffd").startswith(text.rstrip("\ufffd"))
    assert complete(b"".join(map(table.text_bytes, ids))) == text


def test_neox_tokenizer_special_tokens_have_names_but_no_text(table: TokenTable) -> None:
    assert (table.display(0), table.text_bytes(0)) == ("<|endoftext|>", b"")
    assert table.text_bytes(len(table.contents) + 7) == b""


def test_table_of_a_tokenizer_that_is_not_byte_level_is_rejected() -> None:
    with pytest.raises(ValueError, match="ByteLevel"):
        TokenTable.from_tokenizer_json({"decoder": {"type": "Metaspace"}, "model": {"vocab": {}}})
