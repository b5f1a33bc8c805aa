"""Checks of structured output: what can be checked without the backend that compiles it. The engine's own check comes after.

Pure, but not quick: a schema of 64 KiB takes a second. Those that are not `is_quick` are checked in a thread.
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

# Checking a schema takes about 15 us a byte; above this it would hold up open streams for more than about 4 ms.
_MAX_BYTES_ON_THE_LOOP = 256

# Python's own module lacks these classes, which the backends know.
_UNICODE_CLASS = re.compile(r"\\[pP](\{[^{}]*\}|[A-Z])")


def is_quick(message: generation_pb2.StructuredOutput) -> bool:
    """Whether the check may run on the event loop."""
    return message.ByteSize() <= _MAX_BYTES_ON_THE_LOOP


def check_structured_output(message: generation_pb2.StructuredOutput, path: str, violations: Violations) -> None:
    """Notes what is wrong with a structured output."""
    size = message.ByteSize()
    if size > MAX_STRUCTURED_OUTPUT_BYTES:
        violations.add(path, f"got {size} bytes, must be at most {MAX_STRUCTURED_OUTPUT_BYTES} in all")
        return
    match message.WhichOneof("constraint"):
        case "json_schema":
            _check_json_schema(message.json_schema, f"{path}.json_schema", violations)
        case "regex":
            _check_regex(message.regex, f"{path}.regex", violations)
        case "choice":
            _check_choices(list(message.choice.texts), f"{path}.choice.texts", violations)
        case _:
            violations.add(path, "is empty; it must have json_schema, regex or choice")


def _check_json_schema(text: str, path: str, violations: Violations) -> None:
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(schema, dict):
            violations.require(False, path, text, "a JSON object that is a schema (draft 2020-12)")
            return
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path)
        violations.add(path, f"not a valid JSON Schema (draft 2020-12) at {show('/' + where)}: {show(error.message)}")
    except RecursionError:
        violations.add(path, "nested too deeply")
    except ValueError as error:
        violations.add(path, f"got {show(text)}, must be JSON: {error}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_regex(pattern: str, path: str, violations: Violations) -> None:
    if not pattern:
        violations.require(False, path, pattern, "a regular expression that is not empty")
        return
    try:
        re.compile(_UNICODE_CLASS.sub(r"\\w", pattern))
    except (re.error, OverflowError) as error:
        violations.add(path, f"got {show(pattern)}, must be a regular expression: {error}")
    except RecursionError:
        violations.add(path, "nested too deeply")


def _check_choices(texts: list[str], path: str, violations: Violations) -> None:
    violations.count(len(texts), path, MAX_CHOICES, min_entries=1)
    seen: dict[str, Any] = {}
    for index, text in enumerate(texts):
        violations.require(bool(text), f"{path}[{index}]", text, "a text that is not empty")
        if text in seen:
            violations.add(f"{path}[{index}]", f"got {show(text)} again (first at {seen[text]}), must be distinct")
        seen.setdefault(text, index)
