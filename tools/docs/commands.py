"""Renders the commands of `neox-serve`, from the same definitions that `--help` prints."""

import enum
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer

from tools.docs.markdown import GENERATED, anchor, prose, table

_INTRODUCTION = """\
`neox-serve COMMAND --help` prints the same. Options that are lists may be repeated. Commands that call a gateway take its address and the
credential from the [settings](configuration.md#client) unless an option says otherwise.
"""


def render_commands(app: typer.Typer) -> str:
    """The page: an overview of all commands, then each with its arguments and options."""
    root: Any = typer.main.get_command(app)
    commands = list(_leaves(root, ("neox-serve",)))
    rows = [(f"[`{' '.join(path)}`](#{anchor(' '.join(path))})", _summary(command)) for path, command in commands]
    parts = [GENERATED, "# Command reference\n", _INTRODUCTION, table(("Command", "What it does"), rows)]
    for path, command in commands:
        parts += _command(path, command)
    return "\n".join(parts)


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is not a group, with its path."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        if not child.hidden:
            yield from _leaves(child, (*path, name))


def _command(path: tuple[str, ...], command: Any) -> Iterator[str]:
    name = " ".join(path)
    yield f"## `{name}` {{#{anchor(name)}}}\n"
    arguments = [parameter for parameter in command.params if not parameter.opts[0].startswith("-")]
    options = [parameter for parameter in command.params if parameter.opts[0].startswith("-") and not getattr(parameter, "hidden", False)]
    usage = " ".join([name, "[OPTIONS]", *(_placeholder(argument) for argument in arguments)])
    yield f"```text\n{usage}\n```\n"
    yield prose(_paragraphs(command.help or "")) + "\n"
    if arguments:
        yield table(("Argument", "Type", "Description"), [(f"`{_label(one)}`", _type(one), one.help or "") for one in arguments])
    if options:
        rows = [(_flags(one), _type(one), _default(one), one.help or "") for one in options]
        yield table(("Option", "Type", "Default", "Description"), rows)


def _summary(command: Any) -> str:
    return _paragraphs(command.help or "").split("\n\n")[0]


def _paragraphs(text: str) -> str:
    text = text.replace("\b", "").replace("\f", "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _label(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _placeholder(argument: Any) -> str:
    label = f"{_label(argument)}{'...' if argument.nargs == -1 else ''}"
    return label if argument.required else f"[{label}]"


def _flags(option: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))


def _type(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    repeated = get_origin(annotation) in (list, tuple)
    kind = get_args(annotation)[0] if repeated else annotation
    return f"{_kind(kind, parameter)}{', repeatable' if repeated and parameter.opts[0].startswith('-') else ''}"


def _kind(kind: Any, parameter: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(f"`{member.value}`" for member in kind)
    words = {"bool": "flag", "int": "integer", "float": "number", "str": "text", "Path": "path"}
    limits = [
        f"{sign} {limit:g}"
        for limit, sign in ((getattr(parameter, "min", None), "≥"), (getattr(parameter, "max", None), "≤"))
        if limit is not None
    ]
    return ", ".join([words.get(getattr(kind, "__name__", str(kind)), "text"), *limits])


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = getattr(option.default, "value", option.default)
    if value is None or value in ((), "") or callable(value) or (value is False and not option.secondary_opts):
        return ""
    if isinstance(value, bool):
        return f"`{option.opts[0] if value else option.secondary_opts[0]}`"
    return f"`{value}`"
