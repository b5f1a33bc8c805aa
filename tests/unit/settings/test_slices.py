"""Slices of the settings: nothing is lost on the way, and nothing that was not passed can be read."""

from typing import Any

import pytest

from neox_serve.core.types import Pool
from neox_serve.settings import Settings, SettingsError
from neox_serve.settings.slices import (
    GatewayProcessSettings,
    JobControllerSettings,
    JobEngineSettings,
    ReplicaProcessSettings,
    RouterProcessSettings,
    Slice,
)
from tests.unit.settings.non_default import leaves, non_default_settings

CONSTANT = {"engine.pool"}
"""Leaves of slices that do not come from a setting."""


OPEN_MAPPINGS = ("extra_arguments", "served.max_model_len")
"""Mappings whose keys are data, so that none can be missing."""


def slices_of(settings: Settings) -> dict[str, Slice]:
    return {
        "generation": ReplicaProcessSettings.from_settings(settings, Pool.GENERATION),
        "embedding": ReplicaProcessSettings.from_settings(settings, Pool.EMBEDDING),
        "router": RouterProcessSettings.from_settings(settings),
        "gateway": GatewayProcessSettings.from_settings(settings),
        "jobs": JobControllerSettings.from_settings(settings),
        "job engines": JobEngineSettings.from_settings(settings),
    }


@pytest.mark.parametrize("name", slices_of(Settings()))
def test_slice_contains_every_configured_value(name: str) -> None:
    configured, default = slices_of(non_default_settings())[name], slices_of(Settings())[name]
    arrived, defaults = type(configured).read(configured.dump()).dump(), dict(leaves(default.dump()))
    assert arrived == configured.dump()
    unchanged = {path for path, value in leaves(arrived) if path in defaults and defaults[path] == value}
    excluded = {path for path in unchanged if path.endswith(("access.database_url", "embedding.enabled"))}
    assert unchanged - excluded <= CONSTANT | {"engine.output"}


def _without(values: Any, path: str) -> Any:
    """Returns a copy of nested mappings without one key."""
    first, _, rest = path.partition(".")
    return {key: _without(value, rest) if key == first and rest else value for key, value in values.items() if key != path}


@pytest.mark.parametrize("name", slices_of(Settings()))
def test_slice_with_any_value_missing_is_rejected(name: str) -> None:
    given = slices_of(Settings())[name]
    for path, _ in leaves(given.dump()):
        if not any(mapping in path for mapping in OPEN_MAPPINGS):
            with pytest.raises(SettingsError):
                type(given).read(_without(given.dump(), path))


def test_slice_with_a_missing_value_names_it() -> None:
    given = RouterProcessSettings.from_settings(Settings()).dump()
    with pytest.raises(SettingsError, match=r"^pools\.generation\.replicas\.max_requests: is missing$"):
        RouterProcessSettings.read(_without(given, "pools.generation.replicas.max_requests"))


def test_slice_with_an_unknown_value_is_rejected() -> None:
    given = RouterProcessSettings.from_settings(Settings()).dump()
    with pytest.raises(SettingsError, match="limits: unknown key"):
        RouterProcessSettings.read(given | {"limits": {}})
