"""Reads settings from a YAML file and the environment. No other module reads settings from environment variables."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from neox_serve.settings.tree import Settings


class SettingsError(ValueError):
    """Invalid settings. The message has one line per invalid setting: its key, its value and the allowed values."""


class _WithEnvironment(Settings, BaseSettings):
    """Settings from init arguments and environment variables; the variables take precedence."""

    model_config = SettingsConfigDict(
        env_prefix="NEOX_SERVE_", env_nested_delimiter="__", extra="forbid", frozen=True, protected_namespaces=()
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns the sources in order of precedence. The values of the settings file are the init arguments."""
        return env_settings, init_settings


def load(path: Path | None = None) -> Settings:
    """Returns the settings of a YAML file (None: the defaults), overridden by the environment. Raises SettingsError."""
    return parse(_read_yaml(path) if path else {})


def parse(values: dict[str, Any]) -> Settings:
    """Returns the settings of a mapping, as YAML or JSON represents it, overridden by the environment. Raises SettingsError."""
    with explained():
        return restore(_WithEnvironment(**values).model_dump())


def restore(values: dict[str, Any]) -> Settings:
    """Returns the settings of a mapping, without reading the environment. Missing keys get their defaults. Raises SettingsError."""
    with explained():
        return Settings.model_validate(values)


@contextmanager
def explained() -> Iterator[None]:
    """Turns a pydantic ValidationError raised in the block into a SettingsError."""
    try:
        yield
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must be a mapping of sections, got {type(values).__name__}")
    return values


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    return f"{key}: {problem['msg']} (got {problem['input']!r})"
