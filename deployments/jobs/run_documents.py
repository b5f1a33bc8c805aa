"""Passes a run's description to the process that does it: as a JSON file, or as options of a command line.

The controller writes the file and starts `python -m deployments.jobs.KIND --job FILE`. People give options instead; these are generated
from the fields of the same dataclass, so both forms always describe the same things.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from neox_serve.core.jobs import document
from neox_serve.core.jobs.document import DocumentError
from neox_serve.core.jobs.options import OneOf, Option, flag, option_of, problems, required_fields

R = TypeVar("R")


def write(run: Any, path: Path) -> None:
    """Writes the document of a run; a reader sees either the previous file or the whole new one. Raises OSError or DocumentError."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(document.to_text(document.dump(run)), encoding="utf-8")
    temporary.replace(path)


def read(run_type: type[R], path: Path) -> R:
    """Reads the document of a run. Raises OSError or DocumentError."""
    with path.open("rb") as file:
        return document.load(run_type, document.parse(file.read(document.MAX_BYTES + 1)))


def command_line(module: str, path: Path) -> str:
    """Returns the shell command with which this interpreter does the run whose document is at `path`."""
    return shlex.join([sys.executable, "-m", module, "--job", str(path)])


def parse_arguments(run_type: type[R], module: str, description: str, arguments: Sequence[str] | None = None) -> R:
    """Returns the run that command line arguments describe. Exits with status 2 if they are wrong."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog="Instead of all options, --job FILE reads the description from a JSON document, as the job controller writes it.",
    )
    if given[:1] == ["--job"]:
        if len(given) != 2:
            parser.error("--job takes the name of a file, and cannot be combined with other options")
        return _read_or_exit(parser, run_type, Path(given[1]))
    for name, field_type, field in _fields(run_type):
        _add_argument(parser, name, field_type, field, required=name in required_fields(field.owner))
    values = vars(parser.parse_args(given))
    try:
        run = _build(run_type, values)
    except ValueError as error:
        parser.error(str(error))
    for problem in (problem for part in _parts(run) for problem in problems(part)):
        parser.error(f"argument {flag(problem.field)}: {problem.value!r} is invalid; it must be {problem.allowed}")
    return run


@dataclasses.dataclass(frozen=True, slots=True)
class _OwnedField:
    """A field and the dataclass that it belongs to."""

    owner: type
    field: "dataclasses.Field[Any]"
    option: Option
    is_positional: bool


def _read_or_exit(parser: argparse.ArgumentParser, run_type: type[R], path: Path) -> R:
    try:
        return read(run_type, path)
    except (OSError, DocumentError) as error:
        parser.error(f"--job {path}: {error}")


def _fields(run_type: type, *, nested: bool = False) -> Iterator[tuple[str, Any, _OwnedField]]:
    """Yields the name and the type of every option, of nested dataclasses too. Only the run's own fields can be positional."""
    hints = get_type_hints(run_type)
    for field in dataclasses.fields(run_type):
        inner, option = hints[field.name], option_of(field)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _fields(inner, nested=True)
        elif option is not None:
            yield field.name, inner, _OwnedField(run_type, field, option, option.positional and not nested)


def _add_argument(parser: argparse.ArgumentParser, name: str, field_type: Any, field: _OwnedField, *, required: bool) -> None:
    default = _default(field.field)
    shown = f" (default: {_shown(default)})" if default not in ("", None, False, dataclasses.MISSING) and default else ""
    help_text = f"{field.option.help}{shown}".replace("%", "%%")
    choices = next((check.choices for check in field.option.checks if isinstance(check, OneOf) and field_type is str), None)
    if field_type is bool:
        parser.add_argument(flag(name), dest=name, action="store_true", help=help_text)
    elif field.is_positional:
        parser.add_argument(name, type=_converter(field_type), choices=choices, help=help_text)
    else:
        parser.add_argument(
            flag(name),
            dest=name,
            type=_converter(field_type),
            required=required,
            default=None if required else default,
            choices=choices,
            help=help_text,
        )


def _build(run_type: type[R], values: Mapping[str, Any]) -> R:
    hints = get_type_hints(run_type)
    given = dict[str, Any]()
    for field in dataclasses.fields(run_type):  # type: ignore[arg-type]
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            given[field.name] = _build(inner, values)
        elif field.name in values:
            given[field.name] = values[field.name]
    return run_type(**given)


def _parts(run: Any) -> Iterator[Any]:
    """Yields a dataclass instance and those that it contains."""
    yield run
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value)


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _converter(field_type: Any) -> Callable[[str], Any]:
    """Returns the function that converts the text of an argument to a field's type."""
    if isinstance(field_type, types.UnionType):
        field_type = next(each for each in get_args(field_type) if each is not types.NoneType)
    if get_origin(field_type) is tuple:
        return _names
    if get_origin(field_type) is not None:
        return _json_object
    convert: Callable[[str], Any] = field_type
    return convert


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return values


def _shown(value: Any) -> str:
    """Returns a default as it is written on a command line."""
    return ",".join(value) if isinstance(value, tuple) else str(value)
