"""Token ids to text, token by token: no character is ever split, and text stops where a stop sequence says.

GPT-NeoX tokenizers are byte-level: a token is a run of bytes and a character of most languages spans several tokens. So the text of a
sequence is the UTF-8 decoding of its tokens' bytes, cut anywhere between characters. Two rules make joined pieces equal the whole:
bytes of an unfinished character wait for the rest of it, and where the sequence ends first they are left out; bytes that can never
become a character are U+FFFD, one for each maximal part, as `tokenizers` has it.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neox_serve.core.types import Stopping

TokenBytes = Callable[[int], bytes]
"""What a token adds to the text; nothing for special tokens and for ids the tokenizer does not know."""

_LONGEST_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class TokenTable:
    """All tokens of a byte-level tokenizer. contents: bytes of each id; special: ids that add nothing to text."""

    contents: tuple[bytes, ...]
    special: frozenset[int]

    def text_bytes(self, token_id: int) -> bytes:
        """A `TokenBytes`."""
        return b"" if token_id in self.special or token_id >= len(self.contents) else self.contents[token_id]

    def display(self, token_id: int) -> str:
        """A token by itself, special ones by name; partial characters are U+FFFD."""
        return self.contents[token_id].decode("utf-8", "replace") if token_id < len(self.contents) else ""

    @classmethod
    def from_tokenizer_json(cls, tokenizer: Mapping[str, Any]) -> "TokenTable":
        """The table of a parsed tokenizer.json. Raises ValueError where the tokenizer is not byte-level."""
        decoder = (tokenizer.get("decoder") or {}).get("type")
        if decoder != "ByteLevel":
            raise ValueError(f"decoder {decoder!r}: must be 'ByteLevel', as in every GPT-NeoX tokenizer")
        added = {token["id"]: token for token in tokenizer.get("added_tokens", ())}
        contents = {token_id: _unmap(token) for token, token_id in tokenizer["model"]["vocab"].items()}
        contents |= {token_id: _unmap(token["content"]) for token_id, token in added.items()}
        table = tuple(contents.get(token_id, b"") for token_id in range(max(contents) + 1))
        return cls(table, frozenset(token_id for token_id, token in added.items() if token["special"]))


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable Latin-1 for itself, the others moved past U+00FF.

    Source: GPT-2's `bytes_to_unicode`, which every byte-level BPE uses.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_BYTE_OF_CHARACTER: Mapping[str, int] = _byte_of_character()


def _unmap(token: str) -> bytes:
    """A vocabulary entry as bytes. Added tokens (runs of spaces) hold plain text, which shows in characters outside the map."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


@dataclass(frozen=True, slots=True)
class Piece:
    """What new tokens brought. tokens: how many of them count (those after a stop do not); stop: the stop sequence that matched."""

    text: str
    tokens: int
    stop: str | None = None


class TextStream:
    """The text of one sequence as its tokens come in."""

    def __init__(self, token_bytes: TokenBytes, stopping: Stopping, prompt_token_ids: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stopping.stop_sequences
        self._include_stop = stopping.include_stop_in_output
        self._min_tokens = stopping.min_tokens
        self._tokens = 0
        self._held = ""
        # A prompt may end inside a character; its last bytes belong to the first character of the output.
        self._decode(prompt_token_ids[-2 * _LONGEST_CHARACTER_BYTES :])

    def push(self, token_ids: Sequence[int], *, hide_last: bool = False) -> Piece:
        """Adds tokens; returns the text that can be shown. hide_last: the last token ended the sequence and is not part of the text."""
        visible = token_ids[:-1] if hide_last else token_ids
        if not self._stops:
            return Piece(self._decode(visible), len(token_ids))
        shown = []
        for count, token_id in enumerate(visible, start=1):
            text, stop = self._push_searching(token_id)
            shown.append(text)
            if stop is not None:
                return Piece("".join(shown), count, stop)
        return Piece("".join(shown), len(token_ids))

    def finish(self) -> str:
        """The text still held back, once the sequence has ended without a stop sequence."""
        held, self._held = self._held, ""
        return held + _surrogate_half(self._decoder.getstate()[0])

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def _push_searching(self, token_id: int) -> tuple[str, str | None]:
        """Text to show, and the stop sequence that its end completes. Only a stop that ends in new text counts."""
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
    """The text of bytes that wait for the rest of a character: none, but for a half surrogate, which no third byte would make one.

    Python's decoder waits for that byte all the same.
    """
    is_half = len(waiting) == 2 and waiting[0] == 0xED and waiting[1] >= 0xA0
    return len(waiting) * "\ufffd" if is_half else ""


def _first_stop(text: str, stops: Sequence[str], searched: int) -> tuple[int, str] | None:
    """Start and text of the stop that ends first, past the `searched` first characters; equal ends: first in the list."""
    found = ((text.find(stop, max(0, searched - len(stop) + 1)), stop) for stop in stops)
    return min(((start, stop) for start, stop in found if start >= 0), key=lambda match: match[0] + len(match[1]), default=None)


def _held_length(text: str, stops: Sequence[str]) -> int:
    """The longest end of the text that could be the beginning of a stop, in characters."""
    longest = max(map(len, stops)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0
