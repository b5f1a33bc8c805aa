"""The commands' work: each function is one stage, reads the previous stage's files and writes its own.

Everything lives under one work folder: packages/, documentation/, corpus/ (text, tokenizer, packed tokens) and run/
(checkpoint, log). The last stage writes the model folder.
"""

import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tools.builtin_model import corpus, sources
from tools.builtin_model.packing import Streams, pack_stream
from tools.builtin_model.progress import tracked
from tools.builtin_model.tokenizer import END_OF_TEXT_ID, encode_documents, save_tokenizer, train_tokenizer

TOKENIZER_SAMPLE_FRACTION = 0.35
"""Merges barely change beyond some 30 MB of text, and BPE training time grows with it."""
_SAMPLE_KEY_CHARS = 4000
ANNEALING_ORIGINS = frozenset({"stdlib", "stdlib-test", "documentation"})
"""The carefully edited part of the corpus, and the nearest to what is held out."""


def make_corpus(work: Path) -> corpus.CorpusReport:
    """Gather, filter and write the corpus; returns (and writes) what was kept and left out."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    (work / "packages").mkdir(parents=True, exist_ok=True)
    heldout = corpus.heldout_documents(stdlib)
    report = corpus.build_corpus(_candidates(work, stdlib), heldout, work / "corpus")
    _write_json(work / "corpus" / "report.json", asdict(report))
    return report


def _candidates(work: Path, stdlib: Path) -> Iterator[corpus.Document]:
    """Every candidate document, in the fixed order that decides which of two duplicates stays."""
    yield from corpus.stdlib_documents(stdlib)
    documentation = sources.download_documentation(work / "documentation")
    if documentation is None:
        print("no Python documentation: apt cannot fetch it here; the corpus goes without")  # noqa: T201
    else:
        yield from corpus.documentation_documents(documentation)
    for package in tracked(sources.PACKAGES, "corpus", "packages"):
        wheel = sources.download_package(package, work / "packages")
        yield from corpus.package_documents(package.name, sources.wheel_sources(wheel), package.keep_fraction)


def make_tokenizer(work: Path) -> int:
    """Train the tokenizer on a sample of the corpus; returns the sample's number of documents."""
    texts = [document.text for document in corpus.read_documents(work / "corpus" / "train.jsonl")]
    sample = [text for text in texts if corpus.hash_fraction(text[:_SAMPLE_KEY_CHARS]) < TOKENIZER_SAMPLE_FRACTION]
    tokenizer = train_tokenizer(tracked(sample, "tokenizer", "documents"))
    save_tokenizer(tokenizer, work / "corpus" / "tokenizer.json")
    return len(sample)


def make_streams(work: Path, seed: int) -> Streams:
    """Encode and pack the corpus with the tokenizer at hand."""
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
        aside = work / "corpus" / f"{name}.partial.npy"
        np.save(aside, pack_stream(repeated, END_OF_TEXT_ID, seed))
        aside.replace(work / "corpus" / f"{name}.npy")
    return read_streams(work)


def read_streams(work: Path) -> Streams:
    """The packed tokens, mapped rather than read: only the blocks in use take memory."""
    everything, annealing = (np.load(work / "corpus" / f"{name}.npy", mmap_mode="r") for name in ("everything", "annealing"))
    return Streams(everything, annealing)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
