"""The standard library modules that are held out for evaluation, and the rules that keep copies of them out of the training text.

A held-out set is worthless if a backport, a vendored copy or a test of a module is part of the training text. A file is therefore excluded
if it has the name of a held-out module, of its test or of its documentation page; if it is in a folder with such a name; or if it shares
too many lines with the held-out sources.
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
"""Single-file modules of Python 3.11's standard library that are not trained on. A change invalidates the model card."""

MIN_LINE_CHARS = 24
"""Minimum length of a distinctive line. Shorter lines (`return None`, `else:`) occur everywhere."""

MAX_SHARED_FRACTION = 0.08
"""Maximum fraction of a file's distinctive lines that may occur in held-out sources. Independent files are far below it."""

_HELDOUT_STEMS = frozenset(HELDOUT_MODULES) | frozenset(f"test_{name}" for name in HELDOUT_MODULES)


def distinctive_lines(text: str) -> set[str]:
    """Returns the stripped lines of `text` that are long enough to identify their origin."""
    return {line for raw in text.splitlines() if len(line := raw.strip()) >= MIN_LINE_CHARS}


def heldout_line_set(texts: Iterable[str]) -> frozenset[str]:
    """Returns all distinctive lines of the held-out sources."""
    lines: set[str] = set()
    for text in texts:
        lines |= distinctive_lines(text)
    return frozenset(lines)


def is_heldout_name(path: str) -> bool:
    """Returns whether any part of a slash-separated `path` names a held-out module, its test or its documentation page."""
    parts = PurePosixPath(path).parts
    stems = [part.split(".", 1)[0].lstrip("_").lower() for part in parts]
    return any(stem in _HELDOUT_STEMS for stem in stems)


def shared_fraction(text: str, heldout_lines: frozenset[str]) -> float:
    """Returns the fraction of the distinctive lines of `text` that also occur in the held-out sources."""
    lines = distinctive_lines(text)
    return len(lines & heldout_lines) / len(lines) if lines else 0.0


def leaks_heldout(path: str, text: str, heldout_lines: frozenset[str]) -> bool:
    """Returns whether a candidate must be excluded because of its name or the lines it shares with held-out sources."""
    return is_heldout_name(path) or shared_fraction(text, heldout_lines) > MAX_SHARED_FRACTION
