"""The tree keeps its form: small folders, packages that say what they are for, documented functions, tests that mirror modules."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.repository.test_vocabulary import GENERATED, PRODUCT, ROOT, product_modules

MAX_MODULES = 15
"""Modules in a folder, besides `__init__.py` and `__main__.py`."""
MAX_LINES = 400
"""Lines in a module."""

FOLDERS = sorted({path.parent for package in (*PRODUCT, "tests") for path in (ROOT / package).rglob("*.py")})
PACKAGES = sorted({path.parent for path in product_modules() if path.name == "__init__.py"})


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_folder_has_few_modules(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.stem not in {"__init__", "__main__"} and not GENERATED.search(relative(path))]
    assert len(modules) <= MAX_MODULES


@pytest.mark.parametrize("package", PACKAGES, ids=relative)
def test_package_says_what_it_is_for(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert text, f"{relative(package)}/__init__.py: say what the package is for, what it may import and where to start reading"


def test_every_public_definition_has_a_docstring() -> None:
    assert [f"{relative(path)}:{line}: {name}" for path in product_modules() for line, name in undocumented(path)] == []


def undocumented(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of the module and of its public classes, functions and methods that have no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body and ast.get_docstring(tree) is None:
        yield 1, "module"
    yield from _undocumented_in(tree.body, protocol=False)


def _undocumented_in(body: list[ast.stmt], *, protocol: bool) -> Iterator[tuple[int, str]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not protocol and not _is_overload(node):
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented_in(node.body, protocol=False)


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    names = {getattr(decorator, "id", getattr(decorator, "attr", "")) for decorator in node.decorator_list}
    return bool(names & {"overload", "setter", "override"})


@pytest.mark.parametrize("path", product_modules(), ids=relative)
def test_module_is_not_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_unit_tests_mirror_modules() -> None:
    """Each `tests/unit/A/B/test_c.py` tests the package `A/B`, in the product package or beside it."""
    beside = {"repository", "infra", "bench"}
    for folder in sorted({path.parent for path in (ROOT / "tests" / "unit").rglob("test_*.py")}):
        parts = folder.relative_to(ROOT / "tests" / "unit").parts
        if parts and parts[0] not in beside:
            place = Path(*parts)
            assert (ROOT / place).is_dir() or (ROOT / "neox_serve" / place).is_dir(), folder


def test_commit_hooks_run_tools_of_the_environment() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert {entry.split("/")[0] for entry in re.findall(r"entry: (\S+)", text)} == {".venv"}
