"""Validation of structured output as far as it is possible without the backend that compiles it; the engine checks the rest.

The checks are pure but slow: a schema of 64 KiB takes a second. Those that are not `is_quick` run in a thread.
"""

import json
import re
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from neox_serve.gateway.requests.violations import Violations, show
from neox_serve.v1 import generation_pb2

MAX_STRUCTURED_OUTPUT_BYTES = 65_536
MAX_CHOICES = 256

_MAX_BYTES_ON_THE_LOOP = 256
"""Checking a schema takes about 15 us per byte; larger ones would delay open streams by more than about 4 ms."""

_UNICODE_CLASS = re.compile(r"\\[pP](\{[^{}]*\}|[A-Z])")
"""Character classes that the backends support and Python's `re` does not."""


def is_quick(message: generation_pb2.StructuredOutput) -> bool:
    """Returns whether the check may run on the event loop."""
    return message.ByteSize() <= _MAX_BYTES_ON_THE_LOOP


def check_structured_output(message: generation_pb2.StructuredOutput, path: str, violations: Violations) -> None:
    """Adds the violations of a structured output."""
    size = message.ByteSize()
    if size > MAX_STRUCTURED_OUTPUT_BYTES:
        violations.add(path, f"got {size} bytes, must be at most {MAX_STRUCTURED_OUTPUT_BYTES} in total")
        return
    match message.WhichOneof("constraint"):
        case "json_schema":
            _check_json_schema(message.json_schema, f"{path}.json_schema", violations)
        case "regex":
            _check_regex(message.regex, f"{path}.regex", violations)
        case "choice":
            _check_choices(list(message.choice.texts), f"{path}.choice.texts", violations)
        case _:
            violations.add(path, "is empty, must have json_schema, regex or choice")


def _check_json_schema(text: str, path: str, violations: Violations) -> None:
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(schema, dict):
            violations.require(False, path, text, "a JSON object that is a schema (draft 2020-12)")
            return
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path)
        violations.add(path, f"is not a valid JSON Schema (draft 2020-12) at {show('/' + where)}: {show(error.message)}")
    except RecursionError:
        violations.add(path, "is nested too deeply")
    except ValueError as error:
        violations.add(path, f"got {show(text)}, must be JSON: {error}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_regex(pattern: str, path: str, violations: Violations) -> None:
    if not pattern:
        violations.require(False, path, pattern, "a non-empty regular expression")
        return
    try:
        re.compile(_UNICODE_CLASS.sub(r"\\w", pattern))
    except (re.error, OverflowError) as error:
        violations.add(path, f"got {show(pattern)}, must be a regular expression: {error}")
    except RecursionError:
        violations.add(path, "is nested too deeply")


def _check_choices(texts: list[str], path: str, violations: Violations) -> None:
    violations.count(len(texts), path, MAX_CHOICES, min_entries=1)
    seen: dict[str, Any] = {}
    for index, text in enumerate(texts):
        violations.require(bool(text), f"{path}[{index}]", text, "a non-empty text")
        if text in seen:
            violations.add(f"{path}[{index}]", f"got {show(text)} twice (first at {seen[text]}), must be distinct")
        seen.setdefault(text, index)
