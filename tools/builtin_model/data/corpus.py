"""Building of the training text: collects candidate files, filters them, removes duplicates, and writes two files.

`train.jsonl` has one document per line (`path`, `origin`, `repeats`, `text`). `heldout.jsonl` has the unchanged evaluation modules. Files
are visited in path order and sampled by hashes, so that equal inputs give the same corpus.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.builtin_model.data.heldout import (
    HELDOUT_MODULES,
    distinctive_lines,
    heldout_line_set,
    leaks_heldout,
)

MIN_FILE_BYTES = 200
"""Minimum size of a document."""
MAX_FILE_BYTES = 200_000
"""Maximum size of a document."""
MAX_LINE_CHARS = 600
"""Maximum length of a line."""
MAX_DIGIT_FRACTION = 0.12
"""Maximum fraction of digits. Tables of constants (charmaps, test vectors) are above this; ordinary code is near 0.02."""
MAX_SEEN_LINE_FRACTION = 0.7
"""A file is a near duplicate if a larger fraction of its distinctive lines occurred in earlier files."""
STDLIB_SKIPPED_PARTS = frozenset({"site-packages", "__pycache__", "encodings", "pydoc_data", "ensurepip", "lib2to3"})
"""Folders of the standard library that are not used."""
TEST_PARTS = frozenset({"test", "tests", "testing", "idle_test", "conftest.py"})
"""Path components that mark tests."""
STDLIB_REPEATS = 2
"""How often each module of the standard library occurs in one epoch."""
STDLIB_TEST_KEEP_FRACTION = 0.35
"""Fraction of the standard library's tests that is kept."""


@dataclass(frozen=True, slots=True)
class Document:
    """One training text."""

    path: str
    """Slash-separated path within its origin."""
    origin: str
    """Name of the package, or "stdlib", "stdlib-test", "documentation" or "heldout"."""
    text: str
    """The content."""
    repeats: int = 1
    """How often it occurs in one epoch, at least 1."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats of {self.path} is {self.repeats}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """Statistics of a corpus."""

    documents: int
    """Number of documents that were kept."""
    total_bytes: int
    """Total size of the kept documents."""
    rejected: dict[str, int]
    """Number of rejected documents by reason."""
    heldout_lines_seen_fraction: float
    """Fraction of the held-out modules' distinctive lines that occur in a kept document."""


def hash_fraction(path: str) -> float:
    """Returns a number in [0, 1) that depends only on `path`, so that every machine samples the same files."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64


def quality_problem(text: str) -> str | None:
    """Returns why a text is unsuitable for training, or None if it is suitable."""
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes < MIN_FILE_BYTES:
        return "too short"
    if size_bytes > MAX_FILE_BYTES:
        return "too long"
    if max(map(len, text.splitlines()), default=0) > MAX_LINE_CHARS:
        return "long lines"
    if sum(map(str.isdigit, text)) / len(text) > MAX_DIGIT_FRACTION:
        return "table of numbers"
    return None


class CorpusFilter:
    """Decides which candidates are kept, and remembers them to recognize duplicates."""

    def __init__(self, heldout_lines: frozenset[str]) -> None:
        self._heldout_lines = heldout_lines
        self._seen_lines: set[str] = set()
        self._seen_digests: set[bytes] = set()
        self.rejected: dict[str, int] = {}

    @property
    def heldout_lines_seen_fraction(self) -> float:
        """Fraction of the held-out modules' distinctive lines that occur in a kept document."""
        return len(self._heldout_lines & self._seen_lines) / max(len(self._heldout_lines), 1)

    def accept(self, document: Document) -> bool:
        """Returns whether to keep `document`. A rejection is counted in `rejected` under its reason."""
        problem = self._problem(document)
        if problem is None:
            return True
        self.rejected[problem] = self.rejected.get(problem, 0) + 1
        return False

    def _problem(self, document: Document) -> str | None:
        problem = quality_problem(document.text)
        if problem is not None:
            return problem
        if leaks_heldout(document.path, document.text, self._heldout_lines):
            return "held out"
        digest = hashlib.sha256(document.text.encode()).digest()
        if digest in self._seen_digests:
            return "duplicate"
        lines = distinctive_lines(document.text)
        if lines and len(lines & self._seen_lines) / len(lines) > MAX_SEEN_LINE_FRACTION:
            return "near duplicate"
        self._seen_digests.add(digest)
        self._seen_lines |= lines
        return None


def is_test_path(path: str) -> bool:
    """Returns whether a slash-separated path is in a test folder or names a test module."""
    parts = path.split("/")
    return not TEST_PARTS.isdisjoint(parts) or parts[-1].startswith("test_") or parts[-1].endswith("_test.py")


def decode_source(raw: bytes) -> str | None:
    """Returns UTF-8 text with `\\n` line ends, or None if `raw` is not UTF-8."""
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


def stdlib_documents(stdlib: Path) -> Iterator[Document]:
    """Yields candidates from the running interpreter's standard library. Tests are sampled, and the other modules are repeated."""
    for file in sorted(stdlib.rglob("*.py")):
        relative = file.relative_to(stdlib)
        if STDLIB_SKIPPED_PARTS & set(relative.parts):
            continue
        path = relative.as_posix()
        is_test = is_test_path(path)
        if is_test and hash_fraction(path) >= STDLIB_TEST_KEEP_FRACTION:
            continue
        text = decode_source(file.read_bytes())
        if text is not None:
            yield Document(path, "stdlib-test" if is_test else "stdlib", text, 1 if is_test else STDLIB_REPEATS)


def package_documents(name: str, files: Iterable[tuple[str, bytes]], keep_fraction: float) -> Iterator[Document]:
    """Yields candidates from one package's (path, content) pairs. Tests are left out, because they would dominate."""
    for path, raw in files:
        if is_test_path(path) or hash_fraction(path) >= keep_fraction:
            continue
        text = decode_source(raw)
        if text is not None:
            yield Document(path, name, text)


def documentation_documents(folder: Path) -> Iterator[Document]:
    """Yields candidates from the reST sources of Python's documentation."""
    for file in sorted(folder.rglob("*.rst.txt")):
        text = decode_source(file.read_bytes())
        if text is not None:
            yield Document(file.relative_to(folder).as_posix(), "documentation", text)


def heldout_documents(stdlib: Path) -> list[Document]:
    """Returns the evaluation modules in the order of HELDOUT_MODULES. Raises FileNotFoundError if one is missing."""
    paths = [stdlib / f"{name}.py" for name in HELDOUT_MODULES]
    return [Document(path.name, "heldout", path.read_bytes().decode("utf-8")) for path in paths]


def build_corpus(candidates: Iterable[Document], heldout: list[Document], folder: Path) -> CorpusReport:
    """Filters `candidates`, writes both files to `folder`, and returns the statistics."""
    corpus_filter = CorpusFilter(heldout_line_set(document.text for document in heldout))
    kept = [document for document in candidates if corpus_filter.accept(document)]
    write_documents(kept, folder / "train.jsonl")
    write_documents(heldout, folder / "heldout.jsonl")
    total_bytes = sum(len(document.text.encode()) for document in kept)
    return CorpusReport(len(kept), total_bytes, corpus_filter.rejected, round(corpus_filter.heldout_lines_seen_fraction, 4))


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Writes one JSON object per line. The file is renamed into place, so that a reader never sees an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(document)) + "\n" for document in documents)
    partial.replace(path)


def read_documents(path: Path) -> list[Document]:
    """Reads a file that `write_documents` has written."""
    with path.open(encoding="utf-8") as stream:
        return [Document(**json.loads(line)) for line in stream]
