"""Reading settings from files and the environment."""

from pathlib import Path

import pytest

from neox_serve.settings import Settings, SettingsError, load, parse, restore

VARIABLE = "NEOX_SERVE_GATEWAY__PORT"


def test_load_without_a_file_returns_the_defaults() -> None:
    assert load() == Settings()


def test_load_the_file_overrides_defaults_and_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("gateway: {port: 2, processes: 3}", encoding="utf-8")
    monkeypatch.setenv(VARIABLE, "4")
    gateway = load(file).gateway
    assert (gateway.port, gateway.processes, gateway.host) == (4, 3, Settings().gateway.host)


def test_load_of_an_empty_file_returns_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert load(tmp_path / "empty.yaml") == Settings()


@pytest.mark.parametrize(("text", "message"), [("- a", "must be a mapping of sections, got list"), ("a: [", "while parsing")])
def test_load_of_a_file_that_is_not_a_mapping_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=f"(?s){file}: .*{message}"):
        load(file)


def test_load_of_a_missing_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml"):
        load(tmp_path / "missing.yaml")


def test_parse_reports_every_invalid_setting_with_its_value() -> None:
    with pytest.raises(SettingsError) as raised:
        parse({"gateway": {"port": 70_000, "ports": 1}, "log": {"level": "loud"}})
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("gateway.port: ") and "65535" in line and "70000" in line for line in lines)
    assert "gateway.ports: unknown key" in lines
    assert any(line.startswith("log.level: ") and "'loud'" in line for line in lines)


def test_parse_of_an_invalid_environment_variable_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "many")
    with pytest.raises(SettingsError, match=r"gateway\.port: .*'many'"):
        parse({})


def test_restore_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4")
    assert restore({}).gateway.port == Settings().gateway.port
