"""How a field of a job's description is documented and validated.

The dataclass of each kind of work is the only definition of its options. Each field carries an `Option` in its metadata: the help text,
the checks and whether the value names a file. The gateway, the command line and the controller all read it from there.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from neox_serve.core.jobs.vector_target import VectorTarget
from neox_serve.core.str_enum import StrEnum

T = TypeVar("T")

_METADATA_KEY = "option"
_SECONDS_SUFFIX = "_s"


class FileKind(StrEnum):
    """What kind of file a field names."""

    FILE = "file"
    LOCAL_FOLDER = "local_folder"
    """A folder that cannot be a URL."""
    VECTOR_TARGET = "vector_target"
    """A `VectorTarget`, which contains a path or a URL."""


class Check(Protocol):
    """A condition on the value of a field."""

    @property
    def allowed(self) -> str:
        """The allowed values, as the end of "it must be ..."."""

    def accepts(self, value: Any) -> bool:
        """Returns whether the value is allowed."""


@dataclass(frozen=True, slots=True)
class Between:
    """A number in a closed interval, or in a half-open one if the minimum is excluded."""

    minimum: float
    """The smallest allowed value."""
    maximum: float
    """The largest allowed value."""
    exclude_minimum: bool = False
    """Whether the minimum itself is refused."""

    @property
    def allowed(self) -> str:
        """The interval."""
        return f"in {'(' if self.exclude_minimum else '['}{self.minimum:.15g}, {self.maximum:.15g}]"

    def accepts(self, value: Any) -> bool:
        """Returns whether the number is in the interval. NaN is not."""
        return bool(self.minimum < value <= self.maximum or (value == self.minimum and not self.exclude_minimum))


@dataclass(frozen=True, slots=True)
class OneOf:
    """A text out of a list, or a non-empty tuple of such texts."""

    choices: Sequence[str]
    """The allowed texts."""

    @property
    def allowed(self) -> str:
        """The choices."""
        return f"one or more of {', '.join(self.choices)}" if len(self.choices) > 2 else " or ".join(self.choices)

    def accepts(self, value: Any) -> bool:
        """Returns whether the text, or every text of the tuple, is one of the choices."""
        return value in self.choices if isinstance(value, str) else bool(value) and set(value) <= set(self.choices)


@dataclass(frozen=True, slots=True)
class Matching:
    """A text that matches a regular expression as a whole, or a tuple of such texts."""

    pattern: re.Pattern[str]
    """The regular expression."""
    allowed: str
    """The allowed texts, in words."""

    def accepts(self, value: Any) -> bool:
        """Returns whether the text, or every text of the tuple, matches."""
        return all(self.pattern.fullmatch(text) for text in ([value] if isinstance(value, str) else value))


@dataclass(frozen=True, slots=True)
class Count:
    """A tuple with a limited number of entries."""

    minimum: int
    """The smallest number of entries."""
    maximum: int
    """The largest number of entries."""

    @property
    def allowed(self) -> str:
        """The number of entries."""
        return f"{self.minimum} to {self.maximum} names"

    def accepts(self, value: Any) -> bool:
        """Returns whether the number of entries is allowed."""
        return self.minimum <= len(value) <= self.maximum


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of a field besides its type and its default."""

    help: str
    """One or two sentences for users."""
    checks: tuple[Check, ...] = ()
    """Conditions that the value must meet."""
    file: FileKind | None = None
    """What kind of file the value names; None if it names none. An empty name means that there is no such file."""
    operator_only: bool = False
    """Whether only operators may set the field to something other than its default."""
    positional: bool = False
    """Whether a command line takes the value by position instead of as an option."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A field whose value is not allowed."""

    field: str
    """Name of the field."""
    value: object
    """Its value."""
    allowed: str
    """The allowed values, as the end of "it must be ..."."""

    def __str__(self) -> str:
        return f"{self.field}: {self.value!r} is invalid; it must be {self.allowed}"


def option(
    help_text: str, *checks: Check, file: FileKind | None = None, operator_only: bool = False, positional: bool = False
) -> dict[str, Any]:
    """Returns the metadata of a dataclass field that is an option; see `Option` for the arguments."""
    return {_METADATA_KEY: Option(help_text, checks, file, operator_only, positional)}


def option_of(field: "dataclasses.Field[Any]") -> Option | None:
    """Returns the Option of a dataclass field; None if it has none."""
    return field.metadata.get(_METADATA_KEY)


def options_of(description: type | object) -> Mapping[str, Option]:
    """Returns the Options of a dataclass, or of an instance, by the names of its fields."""
    found = ((field.name, option_of(field)) for field in dataclasses.fields(description))  # type: ignore[arg-type]
    return {name: option for name, option in found if option is not None}


def flag(field: str) -> str:
    """Returns the command line option of a field: its name with hyphens, without the unit of seconds."""
    return f"--{field.removesuffix(_SECONDS_SUFFIX).replace('_', '-')}"


def problems(description: object) -> Iterator[Problem]:
    """Yields every field of a dataclass instance whose value its checks refuse, in the order of the fields."""
    for name, found in options_of(description).items():
        value = getattr(description, name)
        for check in found.checks:
            if value is not None and not check.accepts(value):
                yield Problem(name, value, check.allowed)


def required_fields(description_type: type) -> frozenset[str]:
    """Returns the names of the fields of a dataclass that have no default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(description_type)
    return frozenset(field.name for field in fields if field.default is missing and field.default_factory is missing)


def file_name(description: object, field: str) -> str:
    """Returns the path or URL that a field names; "" if it names none. Raises ValueError if the value cannot be parsed."""
    value: str = getattr(description, field)
    kind = options_of(description)[field].file
    if kind is None or not value:
        return ""
    return VectorTarget.parse(value).place if kind is FileKind.VECTOR_TARGET else value


def with_file_names(description: T, change: Callable[[str], str]) -> T:
    """Returns a copy of a dataclass instance in which `change` was applied to every file name that is not empty. Raises ValueError."""
    changed = dict[str, str]()
    for field, found in options_of(description).items():
        if file := file_name(description, field):
            changed[field] = change(file)
            if found.file is FileKind.VECTOR_TARGET:
                target = VectorTarget.parse(getattr(description, field))
                changed[field] = str(dataclasses.replace(target, place=changed[field]))
    return dataclasses.replace(description, **changed)  # type: ignore[type-var]
