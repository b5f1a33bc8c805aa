"""Collects what is wrong with a request, so that the caller learns of all of it at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from neox_serve.core.errors import FieldViolation, Reason, ServeError

_MAX_VALUE_CHARACTERS = 64


def show(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}…"


@dataclass(slots=True)
class Violations:
    """The violations found so far, in the order of the fields."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        """Notes that the field at `path` is wrong. The description names the value and what is allowed."""
        self.found.append(FieldViolation(path, description))

    def require(self, holds: bool, path: str, value: object, allowed: str) -> None:
        """Notes the field unless the condition holds."""
        if not holds:
            self.add(path, f"got {show(value)}, must be {allowed}")

    def count(self, number: int, path: str, most: int, *, least: int = 0) -> None:
        """Notes the field unless it has `least` to `most` entries."""
        if not least <= number <= most:
            self.add(path, f"got {number} entries, must be {least} to {most}")

    def token_ids(self, ids: Sequence[int], path: str, vocabulary_size: int) -> None:
        """Notes the first id that is not below the vocabulary size."""
        if ids and max(ids) >= vocabulary_size:
            index, wrong = next((index, one) for index, one in enumerate(ids) if one >= vocabulary_size)
            self.require(False, f"{path}[{index}]", wrong, f"in [0, {vocabulary_size})")

    def raise_if_any(self) -> None:
        """Raises one INVALID_ARGUMENT with all violations."""
        if self.found:
            raise refusal(Reason.INVALID_ARGUMENT, self.found)


def refusal(reason: Reason, found: Iterable[FieldViolation], **metadata: str) -> ServeError:
    """An error about fields: the first in words, all as violations."""
    violations = tuple(found)
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    first = violations[0]
    return ServeError(reason, f"{first.field}: {first.description}{more}", metadata=metadata, violations=violations)
