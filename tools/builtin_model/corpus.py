"""Builds the training text: gathers candidate files, filters, removes duplicates, and writes two files.

`train.jsonl` holds one document a line (`path`, `origin`, `repeats`, `text`); `heldout.jsonl` holds the evaluation
modules byte for byte. Everything is in path order and chosen by hashes, so one set of inputs gives one corpus.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.builtin_model.heldout import (
    HELDOUT_MODULES,
    distinctive_lines,
    heldout_line_set,
    leaks_heldout,
)

MIN_FILE_BYTES = 200
MAX_FILE_BYTES = 200_000
MAX_LINE_CHARS = 600
MAX_DIGIT_FRACTION = 0.12
"""Tables of constants (charmaps, test vectors) are above this; ordinary code is near 0.02."""
MAX_SEEN_LINE_FRACTION = 0.7
"""A file most of whose distinctive lines stood in earlier files is a near duplicate."""
STDLIB_SKIPPED_PARTS = frozenset({"site-packages", "__pycache__", "encodings", "pydoc_data", "ensurepip", "lib2to3"})
TEST_PARTS = frozenset({"test", "tests", "testing", "idle_test", "conftest.py"})
STDLIB_REPEATS = 2
STDLIB_TEST_KEEP_FRACTION = 0.35


@dataclass(frozen=True, slots=True)
class Document:
    """One training text. `repeats` is how often it stands in one epoch."""

    path: str
    origin: str
    text: str
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats of {self.path} is {self.repeats}; allowed: 1 or more")


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """What was kept and why the rest was not.

    `heldout_lines_seen_fraction` is the share of the held-out modules' distinctive lines that stand in a kept document.
    """

    documents: int
    total_bytes: int
    rejected: dict[str, int]
    heldout_lines_seen_fraction: float


def hash_fraction(path: str) -> float:
    """A number in [0, 1) that depends on `path` only: the same files are sampled on every machine."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64


def quality_problem(text: str) -> str | None:
    """Why a text is not worth training on, or None when it is."""
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
    """Decides on one candidate after another; remembers what was kept to recognise duplicates."""

    def __init__(self, heldout_lines: frozenset[str]) -> None:
        self._heldout_lines = heldout_lines
        self._seen_lines: set[str] = set()
        self._seen_digests: set[bytes] = set()
        self.rejected: dict[str, int] = {}

    @property
    def heldout_lines_seen_fraction(self) -> float:
        """Share (0 to 1) of the held-out distinctive lines that stand in what was kept."""
        return len(self._heldout_lines & self._seen_lines) / max(len(self._heldout_lines), 1)

    def accept(self, document: Document) -> bool:
        """Whether to keep `document`; a refusal is counted under its reason in `rejected`."""
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
    """Whether a slash-separated path lies in a test folder or names a test module."""
    parts = path.split("/")
    return not TEST_PARTS.isdisjoint(parts) or parts[-1].startswith("test_") or parts[-1].endswith("_test.py")


def decode_source(raw: bytes) -> str | None:
    """UTF-8 text with `\\n` line ends, or None for anything else."""
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


def stdlib_documents(stdlib: Path) -> Iterator[Document]:
    """Candidate documents of the running interpreter's standard library, tests sampled, the rest repeated."""
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
    """Candidate documents of one package's (path, content) pairs. Its tests are left out: they would dominate."""
    for path, raw in files:
        if is_test_path(path) or hash_fraction(path) >= keep_fraction:
            continue
        text = decode_source(raw)
        if text is not None:
            yield Document(path, name, text)


def documentation_documents(folder: Path) -> Iterator[Document]:
    """Candidate documents of the reST sources of Python's documentation."""
    for file in sorted(folder.rglob("*.rst.txt")):
        text = decode_source(file.read_bytes())
        if text is not None:
            yield Document(file.relative_to(folder).as_posix(), "documentation", text)


def heldout_documents(stdlib: Path) -> list[Document]:
    """The evaluation modules, in the fixed order of the list. Raises FileNotFoundError when one is missing."""
    paths = [stdlib / f"{name}.py" for name in HELDOUT_MODULES]
    return [Document(path.name, "heldout", path.read_bytes().decode("utf-8")) for path in paths]


def build_corpus(candidates: Iterable[Document], heldout: list[Document], folder: Path) -> CorpusReport:
    """Filter `candidates` against `heldout` and write both files into `folder`, each aside and then renamed."""
    keeper = CorpusFilter(heldout_line_set(document.text for document in heldout))
    kept = [document for document in candidates if keeper.accept(document)]
    write_documents(kept, folder / "train.jsonl")
    write_documents(heldout, folder / "heldout.jsonl")
    total_bytes = sum(len(document.text.encode()) for document in kept)
    return CorpusReport(len(kept), total_bytes, keeper.rejected, round(keeper.heldout_lines_seen_fraction, 4))


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Write one JSON object a line; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    with aside.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(document)) + "\n" for document in documents)
    aside.replace(path)


def read_documents(path: Path) -> list[Document]:
    """Read what `write_documents` wrote."""
    with path.open(encoding="utf-8") as stream:
        return [Document(**json.loads(line)) for line in stream]
