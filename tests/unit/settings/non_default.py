"""Settings in which every value differs from its default."""

import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from neox_serve.settings import Settings, restore
from neox_serve.settings.sections import Section

CONSTRAINED: dict[str, Any] = {
    "model.name": "other-model",
    "model.revision": "v2",
    "model.adapters": [{"name": "tuned", "path": "/adapters/tuned", "pinned": True}],
    "generation.replicas.min": 2,
    "generation.replicas.initial": 3,
    "generation.replicas.max": 4,
    "embedding.replicas.min": 2,
    "embedding.replicas.initial": 3,
    "embedding.replicas.max": 4,
    "router.host": "10.1.2.3",
    "generation.engine.extra_arguments": {"seed": 7},
    "embedding.engine.extra_arguments": {"seed": 7},
}
"""Values of settings that are constrained by more than type and range."""
EXCLUDED = {"access.database_url", "client.api_key", "embedding.enabled"}
"""Settings that exclude another one, which is set instead; and the switch without which there is no embedding pool."""


def non_default_settings() -> Settings:
    """Returns the settings. Raises AssertionError if a value equals its default."""
    settings = restore(_section_values(Settings, ""))
    defaults = dict(leaves(Settings().model_dump(mode="json")))
    unchanged = {path for path, value in leaves(settings.model_dump(mode="json")) if defaults.get(path, ...) == value}
    assert unchanged == EXCLUDED
    return settings


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted path and value of every leaf of a tree of mappings and lists."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}.{index}")
    else:
        yield path, value


def _section_values(section: type[Section], prefix: str) -> dict[str, Any]:
    values = {}
    for name, field in section.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        if path not in EXCLUDED:
            values[name] = CONSTRAINED[path] if path in CONSTRAINED else _value(field, path)
    return values


def _value(field: FieldInfo, path: str) -> Any:
    for kind in _alternatives(field.annotation):
        if get_origin(kind) is Literal:
            return next(choice for choice in get_args(kind) if choice != field.default)
        if issubclass(kind, Section):
            return _section_values(kind, path)
        if issubclass(kind, Enum):
            return next(choice.value for choice in kind if choice is not field.default)
        if kind is bool:
            return field.default is not True
        if kind in {int, float}:
            return _number(field, kind)
        if kind in {str, Path, SecretStr}:
            return f"/other/{path}"
    raise AssertionError(f"{path}: no value is known for {field.annotation}")


def _alternatives(annotation: Any) -> list[Any]:
    """Returns the types of an annotation without None."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation]


def _number(field: FieldInfo, kind: type) -> Any:
    """Returns a number in the field's range that is not its default."""
    low, high = 0.0, float("inf")
    for rule in field.metadata:
        low = max(low, getattr(rule, "ge", low) or 0.0, getattr(rule, "gt", low) or 0.0)
        high = min(high, *(bound for bound in (getattr(rule, "le", None), getattr(rule, "lt", None)) if bound is not None), high)
    start = field.default if isinstance(field.default, int | float) else low
    wanted = start + 1 if start + 1 < high else (low + start) / 2
    return kind(wanted)
