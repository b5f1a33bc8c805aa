"""The settings of a command: from the file, the environment and `--set`, in the order of increasing precedence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from neox_serve.settings import Settings

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting, for example generation.replicas.max=2; repeatable."),
]


def effective(config: Path | None, overrides: Sequence[str] | None = None) -> "Settings":
    """The settings: defaults, overridden by the file, the environment and then the overrides. Raises SettingsError."""
    from neox_serve.settings import load, restore

    settings = load(config)
    if not overrides:
        return settings
    values = settings.model_dump()
    for override in overrides:
        _apply(values, override)
    return restore(values)


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one value. A key that does not exist is reported later, by the validation of the settings."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise typer.BadParameter(f"{override!r} is invalid; it must have the form SECTION.KEY=VALUE", param_hint="--set")
    *sections, key = path.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise typer.BadParameter(f"{override!r} is invalid; {section} is a setting, not a section", param_hint="--set")
        values = inner
    values[key] = _value(override, text)


def _value(override: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{override!r} is invalid; the value is not YAML", param_hint="--set") from error
