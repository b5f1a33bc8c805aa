"""Every setting is documented, so that the configuration reference and the JSON Schema are complete."""

from collections.abc import Iterator

from pydantic.fields import FieldInfo

from neox_serve.settings import Settings
from neox_serve.settings.engines import AdapterSettings
from neox_serve.settings.gateway import JwtSettings
from neox_serve.settings.sections import Section
from tests.unit.settings.non_default import non_default_settings


def fields_of(section: type[Section], path: str) -> Iterator[tuple[str, FieldInfo]]:
    """Yields path and field of every setting below a section."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields_of(field.annotation, f"{path}{name}.")


def all_fields() -> dict[str, FieldInfo]:
    """Returns all settings by path, with those below optional and repeated sections."""
    settings, jwt, adapters = fields_of(Settings, ""), fields_of(JwtSettings, "access.jwt."), fields_of(AdapterSettings, "model.adapters.")
    return dict([*settings, *jwt, *adapters])


def test_every_setting_has_a_description_of_full_sentences() -> None:
    descriptions = {path: field.description or "" for path, field in all_fields().items()}
    assert [path for path, text in descriptions.items() if len(text) < 15 or not text.endswith((".", ".)"))] == []


def test_every_setting_can_have_another_value_than_its_default() -> None:
    assert non_default_settings() != Settings()
