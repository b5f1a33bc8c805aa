"""Converts between text and token ids with the served model's own tokenizer file. The gateway and the jobs share it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from neox_serve.core.types import TokenIds
from neox_serve.model.chat import read_template

Offset = tuple[int, int]
"""Start and end of a token in code points, end exclusive."""

MAX_CHARACTERS_ON_THE_LOOP = 2_000
"""Longer texts are encoded in a thread. Encoding takes about 1 us per character, so no open stream waits more than about 2 ms."""

_MAX_SHRINKAGE = 3
"""A normalizer may compose characters: at most three code points of 3 bytes (the parts of a Hangul syllable) become one of 3 bytes."""


class TokenizerError(ValueError):
    """The folder contains no usable tokenizer. The message names the file."""


class Tokenizer:
    """The tokenizer of a model folder, from its `tokenizer.json`. It is thread-safe and never adds special tokens."""

    def __init__(self, folder: Path) -> None:
        """Loads the tokenizer. Raises TokenizerError."""
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for unreadable and malformed files
            raise TokenizerError(f"{path}: {error}") from error
        try:
            self.chat_template = read_template(folder)
            """The folder's chat template, or None."""
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{folder}: cannot read the chat template: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if isinstance(self._tokenizer.post_processor, tokenizers.processors.ByteLevel):
            self._tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)  # offsets include the spaces of a token
        self._max_bytes_per_token = _max_bytes_per_token(self._tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that have a text. The model's vocabulary may be padded to a larger size."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> TokenIds:
        """Returns the token ids of a text; empty for an empty text."""
        return tuple(self._encode(text).ids)

    def encode_with_offsets(self, text: str) -> tuple[TokenIds, tuple[Offset, ...]]:
        """Returns the token ids of a text and the offset of each."""
        encoding = self._encode(text)
        return tuple(encoding.ids), tuple(encoding.offsets)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids, with special tokens. Incomplete characters become U+FFFD.

        Ids without a text, which a padded vocabulary has, are skipped.
        """
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def min_tokens(self, text: str) -> int:
        """Returns a lower bound for the number of tokens of a text, without encoding it."""
        return -(-len(text.encode()) // self._max_bytes_per_token)

    async def encode_aside(self, text: str) -> TokenIds:
        """Encodes a text like `encode`, in a thread if the text is long."""
        if len(text) <= MAX_CHARACTERS_ON_THE_LOOP:
            return self.encode(text)
        return await asyncio.to_thread(self.encode, text)

    def _encode(self, text: str) -> tokenizers.Encoding:
        """Encodes a text. Only the library's batch call releases the interpreter lock, so long texts use it."""
        if len(text) <= MAX_CHARACTERS_ON_THE_LOOP:
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]


def _max_bytes_per_token(tokenizer: tokenizers.Tokenizer) -> int:
    """Returns an upper bound for the text bytes of one token.

    Each character of a byte-level token stands for one byte, and other tokens stand for themselves.
    """
    longest = max((len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)), default=1)
    return longest if tokenizer.normalizer is None else longest * _MAX_SHRINKAGE
