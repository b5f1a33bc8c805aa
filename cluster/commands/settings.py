"""The settings a command works with: file, environment and `--set`, last wins."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from neox_serve.settings import Settings

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Overrides a setting, such as generation.replicas.max=2; repeatable."),
]


def effective(config: Path | None, overrides: Sequence[str] | None = None) -> "Settings":
    """Defaults, then the file, then the environment, then the overrides. Raises SettingsError."""
    from neox_serve.settings import load, restore

    settings = load(config)
    if not overrides:
        return settings
    values = settings.model_dump()
    for override in overrides:
        _apply(values, override)
    return restore(values)


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one value; keys that do not exist are left to the settings' own check, which names them."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise typer.BadParameter(f"expected SECTION.KEY=VALUE, got {override!r}", param_hint="--set")
    *sections, key = path.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise typer.BadParameter(f"{section} has no settings below it, in {override!r}", param_hint="--set")
        values = inner
    values[key] = _value(override, text)


def _value(override: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"not a YAML value in {override!r}", param_hint="--set") from error
