"""The stages of the tool. Each function is one stage, which reads the files of the previous stage and writes its own.

All files are in one work folder: packages/, documentation/, corpus/ (text, tokenizer, packed tokens) and run/ (checkpoint, log). The last
stage writes the model folder.
"""

import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tools.builtin_model.data import corpus, sources
from tools.builtin_model.data.packing import Streams, pack_stream
from tools.builtin_model.progress import tracked
from tools.builtin_model.tokenizer import END_OF_TEXT_ID, encode_documents, save_tokenizer, train_tokenizer

TOKENIZER_SAMPLE_FRACTION = 0.35
"""Fraction of the documents on which the tokenizer is trained. More than about 30 MB of text barely changes the merges."""
_SAMPLE_KEY_CHARS = 4000
ANNEALING_ORIGINS = frozenset({"stdlib", "stdlib-test", "documentation"})
"""Origins of the documents for the annealing phase: the carefully edited part of the corpus, which is closest to the held-out text."""


def make_corpus(work: Path) -> corpus.CorpusReport:
    """Collect, filter and write the corpus. Return the report, which is also written to the corpus folder."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    (work / "packages").mkdir(parents=True, exist_ok=True)
    heldout = corpus.heldout_documents(stdlib)
    report = corpus.build_corpus(_candidates(work, stdlib), heldout, work / "corpus")
    _write_json(work / "corpus" / "report.json", asdict(report))
    return report


def _candidates(work: Path, stdlib: Path) -> Iterator[corpus.Document]:
    """Yields every candidate document in a fixed order. Of duplicates, the first one is kept."""
    yield from corpus.stdlib_documents(stdlib)
    documentation = sources.download_documentation(work / "documentation")
    if documentation is None:
        print("Python's documentation is left out of the corpus, because apt-get cannot download it on this machine")  # noqa: T201
    else:
        yield from corpus.documentation_documents(documentation)
    for package in tracked(sources.PACKAGES, "corpus", "packages"):
        wheel = sources.download_package(package, work / "packages")
        yield from corpus.package_documents(package.name, sources.wheel_sources(wheel), package.keep_fraction)


def make_tokenizer(work: Path) -> int:
    """Trains the tokenizer on a sample of the corpus, and returns the number of documents in the sample."""
    texts = [document.text for document in corpus.read_documents(work / "corpus" / "train.jsonl")]
    sample = [text for text in texts if corpus.hash_fraction(text[:_SAMPLE_KEY_CHARS]) < TOKENIZER_SAMPLE_FRACTION]
    tokenizer = train_tokenizer(tracked(sample, "tokenizer", "documents"))
    save_tokenizer(tokenizer, work / "corpus" / "tokenizer.json")
    return len(sample)


def make_streams(work: Path, seed: int) -> Streams:
    """Encodes and packs the corpus with the trained tokenizer, and returns the packed tokens."""
    tokenizer = Tokenizer.from_file(str(work / "corpus" / "tokenizer.json"))
    documents = corpus.read_documents(work / "corpus" / "train.jsonl")
    texts: Iterable[str] = (document.text for document in documents)
    encoded = list(tracked(encode_documents(tokenizer, texts), "encode", "documents", len(documents)))
    for name, origins in (("everything", None), ("annealing", ANNEALING_ORIGINS)):
        repeated = (
            ids
            for document, ids in zip(documents, encoded, strict=True)
            if origins is None or document.origin in origins
            for _ in range(document.repeats)
        )
        partial = work / "corpus" / f"{name}.partial.npy"
        np.save(partial, pack_stream(repeated, END_OF_TEXT_ID, seed))
        partial.replace(work / "corpus" / f"{name}.npy")
    return read_streams(work)


def read_streams(work: Path) -> Streams:
    """Returns the packed tokens as memory-mapped files, of which only the blocks in use take memory."""
    everything, annealing = (np.load(work / "corpus" / f"{name}.npy", mmap_mode="r") for name in ("everything", "annealing"))
    return Streams(everything, annealing)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
