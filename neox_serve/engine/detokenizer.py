"""Incremental detokenization: turns token ids into text without splitting characters, and finds stop sequences.

GPT-NeoX tokenizers are byte-level: a token is a sequence of bytes, and in most languages a character spans several tokens. The text of a
sequence is the UTF-8 decoding of its tokens' bytes. Two rules make the joined pieces equal to the decoding of the whole: the bytes of an
incomplete character are held back until the character is complete, and dropped if the sequence ends first; bytes that can never become a
character turn into U+FFFD, one for each maximal invalid part, as in the library `tokenizers`.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neox_serve.core.types import Stopping

TokenBytes = Callable[[int], bytes]
"""Returns the bytes that a token adds to the text: none for special tokens and for unknown ids."""

_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class TokenTable:
    """All tokens of a byte-level tokenizer."""

    contents: tuple[bytes, ...]
    """The bytes of each token id."""
    special: frozenset[int]
    """Ids that add nothing to the text."""

    def text_bytes(self, token_id: int) -> bytes:
        """Implements `TokenBytes`."""
        return b"" if token_id in self.special or token_id >= len(self.contents) else self.contents[token_id]

    def display(self, token_id: int) -> str:
        """Returns a single token as text: special tokens by name, incomplete characters as U+FFFD."""
        return self.contents[token_id].decode("utf-8", "replace") if token_id < len(self.contents) else ""

    @classmethod
    def from_tokenizer_json(cls, tokenizer: Mapping[str, Any]) -> "TokenTable":
        """Returns the table of a parsed tokenizer.json. Raises ValueError if the tokenizer is not byte-level."""
        decoder = (tokenizer.get("decoder") or {}).get("type")
        if decoder != "ByteLevel":
            raise ValueError(f"decoder {decoder!r}: must be 'ByteLevel', as in every GPT-NeoX tokenizer")
        added = {token["id"]: token for token in tokenizer.get("added_tokens", ())}
        contents = {token_id: _unmap(token) for token, token_id in tokenizer["model"]["vocab"].items()}
        contents |= {token_id: _unmap(token["content"]) for token_id, token in added.items()}
        table = tuple(contents.get(token_id, b"") for token_id in range(max(contents) + 1))
        return cls(table, frozenset(token_id for token_id, token in added.items() if token["special"]))


def _byte_of_character() -> dict[str, int]:
    """Returns the byte that each character of a byte-level vocabulary represents.

    Printable Latin-1 characters represent themselves; the other bytes are represented by characters after U+00FF.

    Source: GPT-2's `bytes_to_unicode`, which every byte-level BPE uses.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_BYTE_OF_CHARACTER: Mapping[str, int] = _byte_of_character()


def _unmap(token: str) -> bytes:
    """Returns the bytes of a vocabulary entry. Added tokens are plain text if they contain characters outside the map, such as spaces."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


@dataclass(frozen=True, slots=True)
class Piece:
    """The text that new tokens add."""

    text: str
    tokens: int
    """Number of new tokens that belong to the output; tokens after a stop sequence do not."""
    stop: str | None = None
    """The stop sequence that matched."""


class TextStream:
    """The text of one sequence, built as its tokens arrive."""

    def __init__(self, token_bytes: TokenBytes, stopping: Stopping, prompt_token_ids: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stopping.stop_sequences
        self._include_stop = stopping.include_stop_in_output
        self._min_tokens = stopping.min_tokens
        self._tokens = 0
        self._held = ""
        # A prompt may end with an incomplete character, whose bytes belong to the first character of the output.
        self._decode(prompt_token_ids[-2 * _MAX_CHARACTER_BYTES :])

    def push(self, token_ids: Sequence[int], *, hide_last: bool = False) -> Piece:
        """Adds tokens and returns the text that can be sent. `hide_last`: the last token ended the sequence and is not part of the text."""
        visible = token_ids[:-1] if hide_last else token_ids
        if not self._stops:
            return Piece(self._decode(visible), len(token_ids))
        texts = []
        for count, token_id in enumerate(visible, start=1):
            text, stop = self._push_searching(token_id)
            texts.append(text)
            if stop is not None:
                return Piece("".join(texts), count, stop)
        return Piece("".join(texts), len(token_ids))

    def finish(self) -> str:
        """Returns the text that was held back. Call it when the sequence has ended without a stop sequence."""
        held, self._held = self._held, ""
        return held + _surrogate_half(self._decoder.getstate()[0])

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def _push_searching(self, token_id: int) -> tuple[str, str | None]:
        """Returns the text to send, and the stop sequence that it completes. Only a match that ends in new text counts."""
        self._tokens += 1
        searched, window = len(self._held), self._held + self._decode((token_id,))
        if self._tokens > self._min_tokens and (match := _first_stop(window, self._stops, searched)):
            start, stop = match
            self._held = ""
            return window[: start + len(stop) if self._include_stop else start], stop
        keep = _held_length(window, self._stops)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep], None


def _surrogate_half(waiting: bytes) -> str:
    """Returns the text of the bytes that the decoder holds back at the end: none, except for half a surrogate.

    No third byte can complete it, but Python's decoder waits for one.
    """
    is_half = len(waiting) == 2 and waiting[0] == 0xED and waiting[1] >= 0xA0
    return len(waiting) * "\ufffd" if is_half else ""


def _first_stop(text: str, stops: Sequence[str], searched: int) -> tuple[int, str] | None:
    """Returns start and text of the stop sequence that ends first, after the first `searched` characters. Ties: the first in the list."""
    found = ((text.find(stop, max(0, searched - len(stop) + 1)), stop) for stop in stops)
    return min(((start, stop) for start, stop in found if start >= 0), key=lambda match: match[0] + len(match[1]), default=None)


def _held_length(text: str, stops: Sequence[str]) -> int:
    """Returns the length, in characters, of the longest suffix of the text that could be the beginning of a stop sequence."""
    longest = max(map(len, stops)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0
