"""What is checked of a guide before any grammar is built, and the names of the fields it comes from."""

import json

from neox_serve.core.errors import ServeError, invalid
from neox_serve.core.types import Choice, Guide, JsonSchema, Regex

_PREFIX = "parameters.guided_output."
_FIELDS: dict[type[Guide], str] = {JsonSchema: "json_schema", Regex: "regex", Choice: "choice"}


def field_path(guide: Guide) -> str:
    """The request field that a guide comes from."""
    return _PREFIX + _FIELDS[type(guide)]


def refusal(guide: Guide, why: str) -> ServeError:
    """The error for a guide that cannot be followed."""
    return invalid(field_path(guide), why)


def check_syntax(guide: Guide) -> None:
    """Raises INVALID_ARGUMENT for a schema that is no JSON object, an empty pattern or a choice of nothing."""
    match guide:
        case JsonSchema(schema):
            _check_schema(guide, schema)
        case Regex(pattern):
            if not pattern:
                raise refusal(guide, "must not be empty")
        case Choice(texts):
            if not texts or not all(texts):
                raise refusal(guide, "must hold at least one text, none of them empty")


def _check_schema(guide: Guide, schema: str) -> None:
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise refusal(guide, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise refusal(guide, f"must be a JSON object, got {type(value).__name__}")
