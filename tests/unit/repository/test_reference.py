"""The generated pages of docs/reference are what today's settings, protos and commands give."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from neox_serve.settings import Settings
from tools.docs.pages import ROOT, reference

FOLDER = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def regenerated() -> dict[str, str]:
    return reference()


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads((FOLDER / "settings.schema.json").read_text(encoding="utf-8"))


def test_reference_has_exactly_the_generated_files(regenerated: dict[str, str]) -> None:
    assert {path.name for path in FOLDER.iterdir()} == regenerated.keys()


@pytest.mark.parametrize("name", ["api.md", "cli.md", "configuration.md", "internal-api.md", "settings.schema.json"])
def test_reference_page_is_fresh(name: str, regenerated: dict[str, str]) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == regenerated[name], "run `make reference`"


def test_configuration_page_has_every_setting_with_its_variable() -> None:
    page = (FOLDER / "configuration.md").read_text(encoding="utf-8")
    for key in keys(Settings):
        assert f"### `{key}`" in page
        assert f"`NEOX_SERVE_{key.upper().replace('.', '__')}`" in page


def test_every_setting_has_a_description() -> None:
    page = (FOLDER / "configuration.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### `(\S+)` \S+\n\n(.*)$", page, flags=re.MULTILINE)
    assert len(entries) > 100
    assert [key for key, first_line in entries if first_line.startswith("* Type:")] == []


def test_every_option_of_every_command_has_a_help_text() -> None:
    page = (FOLDER / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(-[^|]*)` \|.*\|\s+\|$", page, flags=re.MULTILINE) == []


def test_every_field_of_the_public_protocol_has_a_comment() -> None:
    page = (FOLDER / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z_]+)` \| .* \| \d+ \|\s+\|$", page, flags=re.MULTILINE) == []


@pytest.mark.parametrize("path", sorted((ROOT / "deployments" / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_schema_accepts_the_settings_files(path: Path, schema: Any) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


@pytest.mark.parametrize("values", [{"gateway": {"port": 70_000}}, {"gateway": {"prot": 1}}, {"router": {"policy": "random"}}])
def test_schema_refuses_what_the_settings_refuse(values: dict[str, Any], schema: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema)


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Paths of all settings that are not sections."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel) and not str(field.annotation).startswith("tuple")]
        found += keys(sections[0], f"{prefix}{name}.") if sections else [f"{prefix}{name}"]
    return found
