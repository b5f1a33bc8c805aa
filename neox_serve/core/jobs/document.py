"""The JSON document that describes a job, from CreateJob over the database to the process that runs it.

A document is the JSON form of a dataclass plus a `version`. Reading one checks everything: the size, the nesting, the version, unknown and
missing keys, the type of every value and the checks of every option (see `options`). Every error names the key.

The document of a job's work, which the database stores: {"version": 1, "kind": "finetune", "work": {"input": ..., "rank": 8, ...}}.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

from neox_serve.core.jobs.options import problems, required_fields
from neox_serve.core.jobs.work import WORK_TYPES, Work

T = TypeVar("T")

VERSION = 1
"""The version of documents that this code writes, and the only one that it reads."""
MAX_BYTES = 1 << 18
"""The largest document. The largest valid request of BatchService is about half as large."""
MAX_DEPTH = 32
"""The deepest nesting of objects and arrays in a document."""


class DocumentError(ValueError):
    """A document that cannot be used. The message names the key, its value and what is allowed."""


def dump(description: Any) -> dict[str, Any]:
    """Returns the document of a dataclass instance."""
    return {"version": VERSION, **_to_json(description)}


def load(expected: type[T], document: Any) -> T:
    """Returns the dataclass instance that a parsed document describes. Raises DocumentError."""
    values = _checked_object(document)
    description: T = _from_json(expected, values, "")
    return description


def dump_work(kind: str, work: Work) -> dict[str, Any]:
    """Returns the document of a job's work."""
    return {"version": VERSION, "kind": kind, "work": _to_json(work)}


def load_work(document: Any) -> tuple[str, Work]:
    """Returns the kind and the work that a parsed document describes. Raises DocumentError."""
    values = _checked_object(document)
    _check_keys(values, {"kind", "work"}, {"kind", "work"}, "")
    kind = values["kind"]
    if not isinstance(kind, str) or kind not in WORK_TYPES:
        raise DocumentError(f"kind: {kind!r} is invalid; it must be one of {', '.join(WORK_TYPES)}")
    return kind, _from_json(WORK_TYPES[kind], values["work"], "work")


def parse(text: bytes) -> Any:
    """Parses the text of a document, within its limits of size and nesting. Raises DocumentError."""
    if len(text) > MAX_BYTES:
        raise DocumentError(f"the document has {len(text)} bytes; at most {MAX_BYTES} are allowed")
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise DocumentError(f"the document is nested too deeply; at most {MAX_DEPTH} levels are allowed") from error
    except ValueError as error:
        raise DocumentError(f"the document is not valid JSON: {error}") from error
    check_depth(document)
    return document


def to_text(document: Mapping[str, Any]) -> str:
    """Returns the text of a document. Raises DocumentError if it is too large or nested too deeply."""
    check_depth(document)
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    if len(text) > MAX_BYTES:
        raise DocumentError(f"the document has {len(text)} bytes; at most {MAX_BYTES} are allowed")
    return text


def check_depth(value: Any, limit: int = MAX_DEPTH) -> None:
    """Raises DocumentError if a JSON value is nested more than `limit` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    raise DocumentError(f"the value is nested too deeply; at most {limit} levels are allowed")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _checked_object(document: Any) -> dict[str, Any]:
    """Returns the document without its version."""
    if not isinstance(document, dict):
        raise DocumentError(f"the document must be a JSON object, not {_type_name(document)}")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise DocumentError(f"version: {version!r} is not supported; this software reads version {VERSION}")
    return {name: value for name, value in document.items() if name != "version"}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _to_json(each) for name, each in value.items()}
    return [_to_json(each) for each in value] if isinstance(value, tuple | list) else value


def _from_json(expected: Any, value: Any, path: str) -> Any:
    """Converts a JSON value to the expected type: a dataclass, a tuple, a mapping of JSON values, a path, an optional type or a scalar."""
    if dataclasses.is_dataclass(expected):
        return _dataclass_from_json(expected, value, path)
    if isinstance(expected, types.UnionType):
        inner = [each for each in typing.get_args(expected) if each is not types.NoneType]
        return None if value is None else _from_json(inner[0], value, path)
    origin = typing.get_origin(expected)
    if origin is tuple:
        _require(isinstance(value, list), value, "an array", path)
        return tuple(_from_json(typing.get_args(expected)[0], each, f"{path}[{index}]") for index, each in enumerate(value))
    if origin is not None:
        _require(isinstance(value, dict), value, "an object", path)
        return value
    if expected is Path:
        _require(isinstance(value, str), value, "a string", path)
        return Path(value)
    return _scalar_from_json(expected, value, path)


def _scalar_from_json(expected: Any, value: Any, path: str) -> Any:
    if expected is bool:
        _require(isinstance(value, bool), value, "true or false", path)
    elif expected is int:
        _require(isinstance(value, int) and not isinstance(value, bool), value, "an integer", path)
    elif expected is float:
        _require(isinstance(value, int | float) and not isinstance(value, bool), value, "a number", path)
        return _float(value, path)
    else:
        _require(isinstance(value, str), value, "a string", path)
    return value


def _float(value: float, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise DocumentError(f"{path}: the number is too large") from error


def _dataclass_from_json(expected: Any, value: Any, path: str) -> Any:
    _require(isinstance(value, dict), value, "an object", path)
    _check_keys(value, {field.name for field in dataclasses.fields(expected)}, required_fields(expected), path)
    hints = typing.get_type_hints(expected)
    given = {name: _from_json(hints[name], each, _joined(path, name)) for name, each in value.items()}
    try:
        description = expected(**given)
    except ValueError as error:
        raise DocumentError(f"{path}: {error}" if path else str(error)) from error
    for problem in problems(description):
        raise DocumentError(_joined(path, str(problem)))
    return description


def _check_keys(values: Mapping[str, Any], known: Set[str], required: Set[str], path: str) -> None:
    for name in sorted(values.keys() - known):
        raise DocumentError(f"{_joined(path, name)}: unknown key; the keys are {', '.join(sorted(known))}")
    for name in sorted(required - values.keys()):
        raise DocumentError(f"{_joined(path, name)}: is missing")


def _require(holds: bool, value: Any, allowed: str, path: str) -> None:
    if not holds:
        raise DocumentError(f"{path or 'the document'}: must be {allowed}, not {_type_name(value)}")


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
