"""The code, the protos, the settings and the docs use the names of docs/glossary.md, and none that these replaced."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PRODUCT = ("neox_serve", "autoscaling", "deployments", "cluster", "tools")
GENERATED = re.compile(r"neox_serve/(internal/)?v1/|_pb2")
THIS_TEST = Path(__file__)

RETIRED_IDENTIFIERS = {
    r"most_(?!likely|recent|expensive|common)\w+": "max_*",
    r"least_(?!loaded|recently)\w+": "min_*",
    r"(.*_)?(give|gives|giving|gave)_way(_.*)?": "preempt",
    r"Held": "ReservationHandle",
    r"AdmissionDesk|QuotaDesk": "AdmissionService, QuotaService",
    r"JobKeeper|job_keeper": "JobController",
    r"obey\w*": "handle_commands",
    r"lead_tokens": "imbalance_threshold_tokens",
    r"context_tokens": "max_model_len",
    r"repeat_memory\w*": "idempotency",
    r"Pace|Outbox": "a name that says which",
}
"""Patterns of whole identifiers, and the name to use instead."""

RETIRED_MODULES = {"alone", "guides", "joins", "keeper", "repeats", "settling", "outbox", "clocks", "floods", "cache_salt", "checking"}
"""Names of modules that were renamed or merged."""

ONE_CLASS_EACH = ("Job", "Event", "Dispatcher", "Answer", "Call", "Key", "GenerationStream")
"""Names that several classes once shared."""


def product_modules() -> list[Path]:
    """Every module of the product and of the developers' tools that is not generated."""
    paths = [path for package in PRODUCT for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in paths if not GENERATED.search(str(path.relative_to(ROOT)))]


def modules_of_tests() -> list[Path]:
    """Every module of the tests but this one."""
    return [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != THIS_TEST]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that the code defines or uses."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
                yield from name.split(".")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name


def retired_in(names: set[str]) -> list[str]:
    """The names that are retired, each with the name to use."""
    return sorted(f"{name} -> {use}" for name in names for pattern, use in RETIRED_IDENTIFIERS.items() if re.fullmatch(pattern, name))


def test_code_uses_no_retired_name() -> None:
    found = {}
    for path in [*product_modules(), *modules_of_tests()]:
        if retired := retired_in(set(identifiers(parsed(path)))):
            found[str(path.relative_to(ROOT))] = retired
    assert found == {}


@pytest.mark.parametrize(
    "pattern", ["protos/**/*.proto", "docs/**/*.md", "deployments/**/*.yaml", "infra/**/*.*", "README.md", "pyproject.toml"]
)
def test_texts_use_no_retired_name(pattern: str) -> None:
    found = {}
    for path in sorted(ROOT.glob(pattern)):
        if retired := retired_in(set(re.findall(r"[A-Za-z_]\w*", path.read_text(encoding="utf-8"))) - {"Held"}):
            found[str(path.relative_to(ROOT))] = retired
    assert found == {}


def test_no_module_has_a_retired_name() -> None:
    assert [str(path.relative_to(ROOT)) for path in product_modules() if path.stem in RETIRED_MODULES] == []


def test_names_that_were_shared_belong_to_one_class_each() -> None:
    found = defaultdict(list)
    for path in product_modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and node.name in ONE_CLASS_EACH:
                found[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_metrics_have_one_prefix() -> None:
    names = set()
    for path in product_modules():
        for call in ast.walk(parsed(path)):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}:
                names |= {
                    argument.value for argument in call.args[:1] if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                }
    assert names
    assert {name for name in names if not name.startswith("neox_serve_")} == set()


def test_log_events_are_snake_case() -> None:
    """An event is a constant in snake_case with its fields beside it, or in the format if the logger is the standard library's."""
    found = []
    for path in product_modules():
        for call in ast.walk(parsed(path)):
            event = logged_event(call)
            if event is not None and not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*( [a-z_]+=%[a-z])*", event):
                found.append(f"{path.relative_to(ROOT)}:{getattr(call, 'lineno', 0)}: {event}")
    assert found == []


def logged_event(node: ast.AST) -> str | None:
    """The event of a call such as `_log.info("replica_lost", ...)`. None for every other node."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
        return None
    logger = node.func.value
    named = getattr(logger, "id", getattr(logger, "attr", ""))
    if named not in {"log", "_log", "logger", "_logger"} or node.func.attr not in {"debug", "info", "warning", "error", "exception"}:
        return None
    event = node.args[0]
    return event.value if isinstance(event, ast.Constant) and isinstance(event.value, str) else ast.unparse(event)
