"""Writes the options of a call into the fields of its request, and reports values that a field cannot hold by the field's path."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from neox_serve.core.errors import invalid


def set_fields(message: Message, path: str, values: Mapping[str, Any]) -> None:
    """Sets the fields whose value is not None. Raises INVALID_ARGUMENT for a value that the field's protobuf type cannot hold."""
    for name, value in values.items():
        if value is not None:
            try:
                _assign(message, name, value)
            except (TypeError, ValueError) as error:
                raise invalid(f"{path}{name}", f"got {value!r}: {error}") from error


def set_seconds(message: Message, path: str, name: str, seconds: float | None) -> None:
    """Sets a Duration field unless `seconds` is None. Raises INVALID_ARGUMENT for a value that a Duration cannot hold."""
    if seconds is not None:
        try:
            getattr(message, name).FromNanoseconds(round(seconds * 1e9))
            getattr(message, name).SetInParent()
        except (TypeError, ValueError, OverflowError) as error:
            raise invalid(f"{path}{name}", f"got {seconds!r}: {error}") from error


def _assign(message: Message, name: str, value: Any) -> None:
    match value:
        case Mapping():
            getattr(message, name).update(value)
        case str() | bytes() | bool() | int() | float():
            setattr(message, name, value)
        case _:
            getattr(message, name).extend(value)


def word(words: Mapping[str, int], name: str, options: Mapping[str, Any]) -> int | None:
    """The enum number for the value of an option; None if the option is absent. Raises INVALID_ARGUMENT for an unknown word."""
    value = options.get(name)
    if value is None:
        return None
    if value not in words:
        raise invalid(name, f"must be one of {', '.join(words)}, got {value!r}")
    return words[value]


def refuse_unknown(options: Mapping[str, Any], allowed: type) -> None:
    """Raises TypeError for an option that `allowed`, a TypedDict, does not have."""
    unknown = sorted(options.keys() - allowed.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected options: {', '.join(unknown)}; allowed: {', '.join(sorted(allowed.__annotations__))}")
