"""Locating a checkpoint: folders are checked, the hub is used only for names, and every error names the setting."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from neox_serve.model import model_files
from neox_serve.settings import SettingsError
from tests.unit.model.test_facts import PUBLISHED_20B


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_20B))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_locate_local_folder_returns_it_and_reads_its_facts(checkpoint: Path) -> None:
    assert model_files.locate(str(checkpoint), None) == checkpoint
    assert model_files.locate_tokenizer(str(checkpoint), None) == checkpoint
    assert model_files.read_facts(checkpoint).layers == 44


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_locate_incomplete_folder_names_setting_and_file(checkpoint: Path, missing: str) -> None:
    (checkpoint / missing).unlink()
    with pytest.raises(SettingsError, match=rf"model\.source: .*{missing.removeprefix('model')}"):
        model_files.locate(str(checkpoint), None)


def test_locate_tokenizer_without_tokenizer_json_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"model\.source: .*tokenizer\.json"):
        model_files.locate_tokenizer(str(checkpoint), None)


def test_locate_bad_name_says_what_is_allowed() -> None:
    with pytest.raises(SettingsError, match=r"model\.source: .*a local folder or a hub name"):
        model_files.locate("/no/such/folder", None)


def test_locate_tokenizer_from_hub_downloads_no_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model_files.locate_tokenizer("EleutherAI/gpt-neox-20b", "main")
    model_files.locate("EleutherAI/gpt-neox-20b", None)
    assert [(name, revision) for name, revision, _ in asked] == [("EleutherAI/gpt-neox-20b", "main"), ("EleutherAI/gpt-neox-20b", None)]
    assert ["*.safetensors" in patterns for _, _, patterns in asked] == [False, True]


def test_locate_hub_failure_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(SettingsError, match=r"model\.source: 'some/model' .*no route"):
        model_files.locate("some/model", None)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_read_facts_unusable_config_names_the_setting(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=r"model\.source: .*config\.json"):
        model_files.read_facts(checkpoint)
