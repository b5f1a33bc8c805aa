"""Trains the byte-level BPE tokenizer, built like GPT-NeoX-20B's.

Source: GPT-NeoX-20B's tokenizer.json: NFC, ByteLevel without prefix space, `<|endoftext|>` = 0, `<|padding|>` = 1,
and runs of 2 to 24 spaces as the last ids, longest first, as added tokens that are not special.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
END_OF_TEXT_ID = 0
PADDING_ID = 1
LONGEST_SPACE_RUN = 24
SPACE_RUNS: tuple[str, ...] = tuple(" " * length for length in range(LONGEST_SPACE_RUN, 1, -1))


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens, special and added ones included.

    Raises:
        ValueError: the texts are too few to fill the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    # At run time the added tokens cut indentation out before BPE sees it; training has to see the same pieces.
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
        raise ValueError(f"vocabulary has {tokenizer.get_vocab_size()} tokens, needs {vocab_size}: too little text")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json aside, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    tokenizer.save(str(aside))
    aside.replace(path)


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str], batch: int = 256) -> Iterator[list[int]]:
    """Token ids of each text, without special tokens, in order."""
    pending: list[str] = []
    for text in texts:
        pending.append(text)
        if len(pending) == batch:
            yield from (encoding.ids for encoding in tokenizer.encode_batch(pending))
            pending = []
    yield from (encoding.ids for encoding in tokenizer.encode_batch(pending))
