"""The byte-level BPE tokenizer, constructed like that of GPT-NeoX-20B.

Source: GPT-NeoX-20B's tokenizer.json. It has NFC normalization, ByteLevel without prefix space, `<|endoftext|>` = 0 and `<|padding|>` = 1.
The last ids are added tokens, not special ones, for runs of 2 to 24 spaces, the longest first.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
"""Number of tokens, including special and added ones."""
END_OF_TEXT = "<|endoftext|>"
"""Token before each document."""
PADDING = "<|padding|>"
"""Padding token."""
END_OF_TEXT_ID = 0
"""Id of END_OF_TEXT."""
PADDING_ID = 1
"""Id of PADDING."""
MAX_SPACE_RUN = 24
"""Length of the longest run of spaces that is one token."""
SPACE_RUNS: tuple[str, ...] = tuple(" " * length for length in range(MAX_SPACE_RUN, 1, -1))
"""Runs of spaces that are one token each, the longest first."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Trains a tokenizer with exactly `vocab_size` tokens, including special and added ones.

    Raises ValueError if there is too little text to fill the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    # At run time, added tokens remove indentation before BPE is applied, so training must see the same pieces.
    cut_runs = pre_tokenizers.Split(Regex(" {2,24}"), behavior="removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut_runs, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPACE_RUNS),
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.add_tokens([AddedToken(run, normalized=False, special=False) for run in SPACE_RUNS])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the vocabulary has {tokenizer.get_vocab_size()} instead of {vocab_size} tokens: there is too little text")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes tokenizer.json atomically to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tokenizer.save(str(partial))
    partial.replace(path)


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str], batch: int = 256) -> Iterator[list[int]]:
    """Yields the token ids of each text in order, without special tokens."""
    pending: list[str] = []
    for text in texts:
        pending.append(text)
        if len(pending) == batch:
            yield from (encoding.ids for encoding in tokenizer.encode_batch(pending))
            pending = []
    yield from (encoding.ids for encoding in tokenizer.encode_batch(pending))
