"""Text <-> token ids, by the served model's own tokenizer file. Shared by the gateway and the offline jobs."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from neox_serve.core.types import TokenIds
from neox_serve.model.chat import read_template

Offset = tuple[int, int]

# Encoding takes about 1 us a character on one core. Longer texts go to a thread, so that no open stream waits more than about 2 ms.
MAX_CHARACTERS_ON_THE_LOOP = 2_000

# A normalizer may compose characters: at most three code points of 3 bytes (a Hangul syllable's parts) become one of 3 bytes.
_MAX_SHRINKAGE = 3


class TokenizerError(ValueError):
    """The folder holds no tokenizer that can be used. The message names the file."""


class Tokenizer:
    """A model folder's `tokenizer.json`. Safe to use from several threads; never adds special tokens of its own accord.

    chat_template: that of the folder; None where it has none.
    """

    def __init__(self, folder: Path) -> None:
        """Raises TokenizerError."""
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for unreadable and malformed files
            raise TokenizerError(f"{path}: {error}") from error
        try:
            self.chat_template = read_template(folder)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{folder}: its chat template cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if isinstance(self._tokenizer.post_processor, tokenizers.processors.ByteLevel):
            self._tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)  # a token's place includes its spaces
        self._max_bytes_a_token = _max_bytes_a_token(self._tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids with a text; the model's own vocabulary may be padded beyond."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> TokenIds:
        """The text's token ids; none for an empty text."""
        return tuple(self._encode(text).ids)

    def encode_with_offsets(self, text: str) -> tuple[TokenIds, tuple[Offset, ...]]:
        """Token ids and where each stands, as (start, end) in code points, end exclusive."""
        encoding = self._encode(text)
        return tuple(encoding.ids), tuple(encoding.offsets)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included; U+FFFD stands for bytes that are no whole character.

        Ids without a text (a padded vocabulary has some) are left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens of the text, without encoding it."""
        return -(-len(text.encode()) // self._max_bytes_a_token)

    async def encode_aside(self, text: str) -> TokenIds:
        """`encode`, in a thread where the text is long."""
        if len(text) <= MAX_CHARACTERS_ON_THE_LOOP:
            return self.encode(text)
        return await asyncio.to_thread(self.encode, text)

    def _encode(self, text: str) -> tokenizers.Encoding:
        """Only the batch call lets other threads run while it works; one text at a time it holds the interpreter."""
        if len(text) <= MAX_CHARACTERS_ON_THE_LOOP:
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]


def _max_bytes_a_token(tokenizer: tokenizers.Tokenizer) -> int:
    """An upper bound: each character of a byte-level token stands for one byte, and other tokens stand for themselves."""
    longest = max((len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)), default=1)
    return longest if tokenizer.normalizer is None else longest * _MAX_SHRINKAGE
