"""Renders the settings as a page and as a JSON Schema for editors."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tools.docs.markdown import GENERATED, anchor, prose

SCHEMA_FILE = "settings.schema.json"
_INTRODUCTION = """\
Settings come from a YAML file (`--config`), then from environment variables, then from `--set key=value`. The last one wins. An unknown key
or a value out of range stops the start with a message that names the key, the value and what is allowed. `neox-serve config show` prints
every setting with its value, and `neox-serve config check` checks a file against the model and the hardware.

An environment variable is `NEOX_SERVE_`, then the path of the key in capitals with two underscores between its parts. If the setting is a
list or a mapping, the variable holds JSON.

Editors that use the YAML language server complete and check a settings file that begins with

```yaml
# yaml-language-server: $schema=docs/reference/settings.schema.json
```

where the path leads from the file to [the schema](settings.schema.json), or is its URL.
"""


def render_schema(settings: type[BaseModel]) -> str:
    """The JSON Schema of a settings file."""
    schema = settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "neox-serve settings"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def render_configuration(settings: type[BaseModel]) -> str:
    """The page: an entry for each key, by section, in the order of the settings."""
    schema = settings.model_json_schema()
    parts = [GENERATED, "# Configuration reference\n", _INTRODUCTION]
    scalars = {name: field for name, field in settings.model_fields.items() if _section_of(field) is None}
    parts += ["## Top level\n", *_entries((), scalars, schema, schema)]
    for name, field in settings.model_fields.items():
        section = _section_of(field)
        if section is not None:
            parts += _section((name,), section, field, schema)
    return "\n".join(parts)


def environment_variable(path: tuple[str, ...]) -> str:
    """The variable that sets the key with this path."""
    return f"NEOX_SERVE_{'__'.join(path).upper()}"


def _section(path: tuple[str, ...], section: type[BaseModel], field: FieldInfo, schema: Mapping[str, Any]) -> Iterator[str]:
    key = ".".join(path)
    yield f"## `{key}` {{#{anchor(key)}}}\n"
    summary = field.description or (section.__doc__ or "").strip()
    yield prose(_unwrapped(summary)) + "\n"
    if field.default is None:
        yield "The section is optional; without it the feature is off.\n"
    inner = schema["$defs"][section.__name__]
    nested = {name: child for name, child in section.model_fields.items() if _section_of(child) is not None}
    yield from _entries(path, {name: child for name, child in section.model_fields.items() if name not in nested}, inner, schema)
    for name, child in nested.items():
        yield from _section((*path, name), _section_of(child) or section, child, schema)


def _entries(
    path: tuple[str, ...], fields: Mapping[str, FieldInfo], section: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[str]:
    for name, field in fields.items():
        full = (*path, name)
        key = ".".join(full)
        yield f"### `{key}` {{#{anchor(key)}}}\n"
        if field.description:
            yield prose(_unwrapped(field.description)) + "\n"
        yield (
            f"* Type: {_type(section['properties'][name], schema)}\n"
            f"* Default: {_default(field)}\n"
            f"* Environment: `{environment_variable(full)}`\n"
        )


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and "tuple" not in str(field.annotation):
            return kind
    return None


def _type(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The type and range of a key in words, from its part of the JSON Schema."""
    if "$ref" in entry:
        return _type(schema["$defs"][entry["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in entry:
        return " or ".join(_type(option, schema) for option in entry["anyOf"])
    if "enum" in entry:
        return "one of " + ", ".join(f"`{value}`" for value in entry["enum"])
    kind = entry.get("type", "any value")
    if kind == "array":
        return f"list of {_type(entry['items'], schema)}"
    if kind == "object" and "properties" in entry:
        members = (f"`{name}` ({_type(inner, schema)})" for name, inner in entry["properties"].items())
        return f"mapping with {', '.join(members)}"
    words = {"object": "mapping", "null": "`null`", "string": "path" if entry.get("format") == "path" else "string"}
    return f"{words.get(kind, kind)}{_range(entry)}"


def _range(entry: Mapping[str, Any]) -> str:
    limits = [
        f"{sign} {entry[name]:,}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in entry
    ]
    lengths = ["not empty"] if entry.get("minLength") == 1 else []
    lengths += [f"at most {entry['maxLength']} characters"] if "maxLength" in entry else []
    pattern = [f"matching `{entry['pattern']}`"] if "pattern" in entry else []
    return "".join(f", {text}" for text in (*limits, *lengths, *pattern)).replace("<", "&lt;")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        made = field.default_factory()  # type: ignore[call-arg]
        return f"`{json.dumps(made)}`" if isinstance(made, dict | list) else "a folder of the user that runs the command"
    if field.default is PydanticUndefined:
        return "none; the key is required"
    value = getattr(field.default, "value", field.default)
    return f"`{json.dumps(value)}`"


def _unwrapped(text: str) -> str:
    """The text with the line breaks of its source removed, but not those between paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
