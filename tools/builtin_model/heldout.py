"""Which standard-library modules are kept for evaluation, and how copies of them are kept out of training.

A held-out set is worth nothing if a backport, a vendored copy or the module's own test quotes it in the training
text. Three rules keep copies out: a file whose name is a held-out module's, its test's or its documentation page's;
a file under a folder with such a name; and a file that shares too many of its lines with the held-out sources,
whatever it is called.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

HELDOUT_MODULES: tuple[str, ...] = (
    "bisect",
    "calendar",
    "cmd",
    "colorsys",
    "configparser",
    "csv",
    "difflib",
    "fileinput",
    "fractions",
    "graphlib",
    "heapq",
    "ipaddress",
    "mailbox",
    "netrc",
    "pprint",
    "sched",
    "shlex",
    "smtplib",
    "textwrap",
    "wave",
)
"""Single-file modules of Python 3.11's standard library, never trained on. Fixed: changing it invalidates the card."""

MIN_LINE_CHARS = 24
"""Shorter lines (`return None`, `else:`) are everybody's and prove nothing."""

MAX_SHARED_FRACTION = 0.08
"""Share of a file's distinctive lines that may also stand in held-out sources; independent files stay far below."""

_HELDOUT_STEMS = frozenset(HELDOUT_MODULES) | frozenset(f"test_{name}" for name in HELDOUT_MODULES)


def distinctive_lines(text: str) -> set[str]:
    """Stripped lines of `text` long enough to identify where they came from."""
    return {line for raw in text.splitlines() if len(line := raw.strip()) >= MIN_LINE_CHARS}


def heldout_line_set(texts: Iterable[str]) -> frozenset[str]:
    """All distinctive lines of the held-out sources."""
    lines: set[str] = set()
    for text in texts:
        lines |= distinctive_lines(text)
    return frozenset(lines)


def is_heldout_name(path: str) -> bool:
    """Whether any part of a slash-separated `path` names a held-out module, its test or its documentation page."""
    parts = PurePosixPath(path).parts
    stems = [part.split(".", 1)[0].lstrip("_").lower() for part in parts]
    return any(stem in _HELDOUT_STEMS for stem in stems)


def shared_fraction(text: str, heldout_lines: frozenset[str]) -> float:
    """Share (0 to 1) of the distinctive lines of `text` that also stand in the held-out sources."""
    lines = distinctive_lines(text)
    return len(lines & heldout_lines) / len(lines) if lines else 0.0


def leaks_heldout(path: str, text: str, heldout_lines: frozenset[str]) -> bool:
    """Whether a candidate training file must be left out, by its name or by what it shares with held-out sources."""
    return is_heldout_name(path) or shared_fraction(text, heldout_lines) > MAX_SHARED_FRACTION
