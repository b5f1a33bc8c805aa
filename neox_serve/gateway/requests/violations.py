"""Collects all violations of a request, so that the client learns of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from neox_serve.core.errors import FieldViolation, Reason, ServeError

_MAX_VALUE_CHARACTERS = 64


def show(value: object) -> str:
    """Returns a value for an error message, cut off after 64 characters."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}…"


@dataclass(slots=True)
class Violations:
    """Violations in the order in which they were found."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        """Adds a violation of the field at `path`. The description names the value and what is allowed."""
        self.found.append(FieldViolation(path, description))

    def require(self, holds: bool, path: str, value: object, allowed: str) -> None:
        """Adds a violation unless the condition holds."""
        if not holds:
            self.add(path, f"got {show(value)}, must be {allowed}")

    def count(self, number: int, path: str, max_entries: int, *, min_entries: int = 0) -> None:
        """Adds a violation unless the field has `min_entries` to `max_entries` entries."""
        if not min_entries <= number <= max_entries:
            self.add(path, f"got {number} entries, must be {min_entries} to {max_entries}")

    def token_ids(self, ids: Sequence[int], path: str, vocabulary_size: int) -> None:
        """Adds a violation for the first id that is not below the vocabulary size."""
        if ids and max(ids) >= vocabulary_size:
            index, invalid_id = next((index, one) for index, one in enumerate(ids) if one >= vocabulary_size)
            self.require(False, f"{path}[{index}]", invalid_id, f"in [0, {vocabulary_size})")

    def raise_if_any(self) -> None:
        """Raises INVALID_ARGUMENT with all violations, if there are any."""
        if self.found:
            raise refusal(Reason.INVALID_ARGUMENT, self.found)


def refusal(reason: Reason, found: Iterable[FieldViolation], **metadata: str) -> ServeError:
    """Returns an error about fields. Its message describes the first violation; its details hold all of them."""
    violations = tuple(found)
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    first = violations[0]
    return ServeError(reason, f"{first.field}: {first.description}{more}", metadata=metadata, violations=violations)
