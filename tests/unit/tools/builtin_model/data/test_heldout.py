"""Held-out modules must not reach the training text under any name."""

import pytest

from tools.builtin_model.data.heldout import (
    HELDOUT_MODULES,
    distinctive_lines,
    heldout_line_set,
    is_heldout_name,
    leaks_heldout,
    shared_fraction,
)

HELDOUT_TEXT = "\n".join(f"    self._dispatch_table[{index}] = handler_{index}" for index in range(20))


def independent_text(lines: int) -> str:
    """Returns text that shares no line with HELDOUT_TEXT."""
    return "\n".join(f"connection.execute_statement_{index}(query)" for index in range(lines))


def test_heldout_modules_are_twenty_and_distinct() -> None:
    assert len(set(HELDOUT_MODULES)) == len(HELDOUT_MODULES) == 20


@pytest.mark.parametrize(
    "path",
    [
        "heapq.py",
        "test/test_heapq.py",
        "vendored/ipaddress.py",
        "backports/configparser/__init__.py",
        "library/textwrap.rst.txt",
        "package/_difflib.py",
    ],
)
def test_is_heldout_name_module_anywhere_in_the_path_is_recognized(path: str) -> None:
    assert is_heldout_name(path)


@pytest.mark.parametrize("path", ["json/decoder.py", "heapqueue.py", "tests/test_wavelet.py", "cmdline.py"])
def test_is_heldout_name_similar_name_is_not_recognized(path: str) -> None:
    assert not is_heldout_name(path)


def test_distinctive_lines_short_lines_are_ignored() -> None:
    assert distinctive_lines("else:\n    return None\n") == set()


def test_shared_fraction_indented_copy_is_one() -> None:
    copy = "\n".join("        " + line for line in HELDOUT_TEXT.splitlines())
    assert shared_fraction(copy, heldout_line_set([HELDOUT_TEXT])) == 1.0


def test_leaks_heldout_renamed_partial_copy_is_detected() -> None:
    text = independent_text(60) + "\n" + HELDOUT_TEXT
    assert leaks_heldout("compat/util.py", text, heldout_line_set([HELDOUT_TEXT]))


def test_leaks_heldout_independent_text_is_accepted() -> None:
    assert not leaks_heldout("compat/util.py", independent_text(60), heldout_line_set([HELDOUT_TEXT]))


def test_shared_fraction_empty_text_is_zero() -> None:
    assert shared_fraction("", heldout_line_set([HELDOUT_TEXT])) == 0.0
