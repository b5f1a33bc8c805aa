"""Generates the parameters of `neox-serve job submit KIND` from the dataclass of the kind's work.

Fields without a default that are positional become arguments, and all others become options. Help texts, defaults and limits come from the
fields, so a new field needs no code here.
"""

import dataclasses
import inspect
import json
import types
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from neox_serve.core.jobs.options import Between, FileKind, OneOf, Option, flag, option_of, problems, required_fields

T = TypeVar("T")

_SECONDS_SUFFIX = "_s"
_FILE_HELP = "A path or URL; with a credential, a name in the tenant's folder of the cluster."


def work_parameters(work_type: type) -> list[inspect.Parameter]:
    """Returns the keyword parameters of a command that makes work of this type; typer reads them from the command's signature."""
    hints, required = get_type_hints(work_type), required_fields(work_type)
    fields = [field for field in dataclasses.fields(work_type) if option_of(field) is not None]
    # A list takes all remaining arguments, so it must be the last one.
    fields.sort(key=lambda field: (field.name not in required, field.name in required and get_origin(hints[field.name]) is tuple))
    return [_parameter(field, hints[field.name], required=field.name in required) for field in fields]


def build_work(work_type: type[T], values: Mapping[str, Any]) -> T:
    """Returns the work that the values of the parameters describe. Raises BadParameter that names a wrong value."""
    hints = get_type_hints(work_type)
    given = {name: _from_parameter(name, hints[name], value) for name, value in values.items()}
    work = work_type(**given)
    for problem in problems(work):
        hint = problem.field.upper() if problem.field in required_fields(work_type) else flag(problem.field)
        raise typer.BadParameter(f"{problem.value!r} is invalid; it must be {problem.allowed}", param_hint=hint)
    return work


def _parameter(field: "dataclasses.Field[Any]", field_type: Any, *, required: bool) -> inspect.Parameter:
    option = option_of(field) or Option("")
    shown_type, default = _shown_type(field_type), _shown_default(field, field_type)
    help_text = f"{option.help} {_FILE_HELP}" if option.file in {FileKind.FILE, FileKind.LOCAL_FOLDER} else option.help
    if required:
        return _keyword(field.name, Annotated[shown_type, typer.Argument(metavar=field.name.upper(), help=help_text)])
    info = typer.Option(flag(field.name), help=help_text, metavar=_metavar(field.name, field_type, option), **_limits(field_type, option))
    return _keyword(field.name, Annotated[shown_type, info], default)


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _shown_type(field_type: Any) -> Any:
    """Returns the type of the parameter: texts for JSON objects and lists of names, unless all arguments are taken."""
    if isinstance(field_type, types.UnionType):
        return field_type
    if get_origin(field_type) is tuple:
        return list[str]
    return str if get_origin(field_type) is not None else field_type


def _shown_default(field: "dataclasses.Field[Any]", field_type: Any) -> Any:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if get_origin(field_type) is tuple:
        return list(default) if isinstance(default, tuple) else default
    return json.dumps(default) if isinstance(default, Mapping) else default


def _metavar(name: str, field_type: Any, option: Option) -> str | None:
    if option.file is not None:
        return "TARGET" if option.file is FileKind.VECTOR_TARGET else "FILE"
    if name.endswith(_SECONDS_SUFFIX):
        return "SECONDS"
    if get_origin(field_type) is tuple:
        return "|".join(next((check.choices for check in option.checks if isinstance(check, OneOf)), ())) or None
    return "JSON" if get_origin(field_type) is not None and not isinstance(field_type, types.UnionType) else None


def _limits(field_type: Any, option: Option) -> dict[str, Any]:
    """Returns the limits of an integer, which typer checks and shows."""
    inner = next((each for each in get_args(field_type) if each is not types.NoneType), field_type)
    between = next((check for check in option.checks if isinstance(check, Between)), None)
    return {"min": int(between.minimum), "max": int(between.maximum)} if between and inner is int else {}


def _from_parameter(name: str, field_type: Any, value: Any) -> Any:
    if get_origin(field_type) is tuple:
        return tuple(value)
    if get_origin(field_type) is not None and not isinstance(field_type, types.UnionType):
        return _json_object(name, value)
    return value


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"not valid JSON: {error}", param_hint=flag(name)) from error
    if not isinstance(values, dict):
        raise typer.BadParameter("must be a JSON object", param_hint=flag(name))
    return values
