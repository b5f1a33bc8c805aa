"""The modules that Ray Serve's controller imports use only the standard library."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "autoscaling"
MODULES = sorted(path for path in FOLDER.rglob("*.py") if "simulator" not in path.relative_to(FOLDER).parts)


def imported_packages(tree: ast.AST) -> Iterator[str]:
    """Yields the top-level package of each import in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_module_imports_only_the_standard_library(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"autoscaling"} | ({"ray"} if path.name == "ray_adapter.py" else set())
    assert set(imported_packages(ast.parse(path.read_text(encoding="utf-8")))) <= allowed
