"""Held-out modules must not reach the training text under any name."""

import pytest

from tools.builtin_model.heldout import (
    HELDOUT_MODULES,
    distinctive_lines,
    heldout_line_set,
    is_heldout_name,
    leaks_heldout,
    shared_fraction,
)

HELDOUT_TEXT = "\n".join(f"    self._dispatch_table[{index}] = handler_{index}" for index in range(20))


def independent_text(lines: int) -> str:
    """Text that shares no line with HELDOUT_TEXT."""
    return "\n".join(f"connection.execute_statement_{index}(query)" for index in range(lines))


def test_modules_are_about_twenty_and_distinct() -> None:
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
def test_name_of_a_heldout_module_anywhere_in_the_path_is_recognised(path: str) -> None:
    assert is_heldout_name(path)


@pytest.mark.parametrize("path", ["json/decoder.py", "heapqueue.py", "tests/test_wavelet.py", "cmdline.py"])
def test_name_that_only_resembles_a_heldout_module_is_not_recognised(path: str) -> None:
    assert not is_heldout_name(path)


def test_distinctive_lines_of_short_lines_are_none() -> None:
    assert distinctive_lines("else:\n    return None\n") == set()


def test_shared_fraction_of_an_indented_copy_is_one() -> None:
    copy = "\n".join("        " + line for line in HELDOUT_TEXT.splitlines())
    assert shared_fraction(copy, heldout_line_set([HELDOUT_TEXT])) == 1.0


def test_leak_of_a_renamed_partial_copy_is_refused() -> None:
    text = independent_text(60) + "\n" + HELDOUT_TEXT
    assert leaks_heldout("compat/util.py", text, heldout_line_set([HELDOUT_TEXT]))


def test_leak_of_independent_text_is_not_seen() -> None:
    assert not leaks_heldout("compat/util.py", independent_text(60), heldout_line_set([HELDOUT_TEXT]))


def test_shared_fraction_of_empty_text_is_zero() -> None:
    assert shared_fraction("", heldout_line_set([HELDOUT_TEXT])) == 0.0
