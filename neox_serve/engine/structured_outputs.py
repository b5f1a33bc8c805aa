"""Checks of structured outputs that need no grammar compiler, and the request fields that they come from."""

import json

from neox_serve.core.errors import ServeError, invalid
from neox_serve.core.types import Choice, JsonSchema, Regex, StructuredOutput

_PREFIX = "parameters.structured_output."
_FIELDS: dict[type[StructuredOutput], str] = {JsonSchema: "json_schema", Regex: "regex", Choice: "choice"}


def field_path(structured_output: StructuredOutput) -> str:
    """Returns the request field that a structured output comes from."""
    return _PREFIX + _FIELDS[type(structured_output)]


def refusal(structured_output: StructuredOutput, why: str) -> ServeError:
    """Returns the error for a structured output that cannot be followed."""
    return invalid(field_path(structured_output), why)


def check_syntax(structured_output: StructuredOutput) -> None:
    """Raises INVALID_ARGUMENT for a schema that is not a JSON object, an empty pattern, or an empty list of choices."""
    match structured_output:
        case JsonSchema(schema):
            _check_schema(structured_output, schema)
        case Regex(pattern):
            if not pattern:
                raise refusal(structured_output, "must not be empty")
        case Choice(texts):
            if not texts or not all(texts):
                raise refusal(structured_output, "must contain at least one text, and no empty text")


def _check_schema(structured_output: StructuredOutput, schema: str) -> None:
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise refusal(structured_output, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise refusal(structured_output, f"must be a JSON object, got {type(value).__name__}")
