"""Prints the tests that mirror the modules changed since a base commit, for `make test-changed`.

The tests of `neox_serve/router/admissions.py` are `tests/*/router/test_admissions.py`. A module without a test file of its own is covered
by all tests of the folder that mirrors its package. Changed test files run too.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
LEVELS = ("unit", "integration", "contract", "simulation")
"""Folders of tests that start neither Ray nor an engine for longer than seconds."""

REPOSITORY_TESTS = "tests/unit/repository"
"""Tests of everything that is not a module: docs, protos, lock files, the Makefile."""


def changed_files(base: str) -> list[str]:
    """Files that differ from the last common commit with the base, in commits, in the working tree, or as untracked files."""
    fork = _git("merge-base", base, "HEAD").strip()
    return sorted({*_git("diff", "--name-only", fork).split(), *_git("ls-files", "--others", "--exclude-standard").split()})


def mirroring_tests(changed: Iterable[str], tests: Sequence[str]) -> list[str]:
    """Those of the test files that cover the changed files, sorted."""
    chosen: set[str] = set()
    for name in changed:
        if name in tests:
            chosen.add(name)
        elif name.endswith(".py") and not name.startswith("tests/"):
            chosen |= _mirrors(PurePosixPath(name.removeprefix("neox_serve/")), tests)
        elif not name.startswith("tests/"):
            chosen |= {test for test in tests if test.startswith(f"{REPOSITORY_TESTS}/")}
    return sorted(chosen)


def _mirrors(module: PurePosixPath, tests: Sequence[str]) -> set[str]:
    own = {f"tests/{level}/{module.parent / f'test_{module.stem}.py'}" for level in LEVELS} & set(tests)
    folders = {f"tests/{level}/{module.parent}" for level in LEVELS}
    return own or {test for test in tests if str(PurePosixPath(test).parent) in folders}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Prints one test file per line. The argument is the base: a branch, tag or commit."""
    tests = [str(path.relative_to(ROOT)) for level in LEVELS for path in sorted((ROOT / "tests" / level).rglob("test_*.py"))]
    sys.stdout.writelines(f"{name}\n" for name in mirroring_tests(changed_files(sys.argv[1]), tests))


if __name__ == "__main__":
    main()
