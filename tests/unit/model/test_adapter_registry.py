from pathlib import Path

import pytest

from neox_serve.model.adapter_registry import AdapterRegistry, KnownAdapters


def put(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")


def test_adapters_are_found_once_they_are_complete(tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path)
    put(tmp_path / "code")
    put(tmp_path / "acme")
    put(tmp_path / "acme" / "chat")
    put(tmp_path / "acme" / ".next.partial" / "whole")
    (tmp_path / "acme" / "empty").mkdir()
    registry.refresh()
    assert registry.current == ("acme", "acme/chat", "code")
    assert registry.find("acme/chat") == tmp_path / "acme" / "chat"
    assert registry.find("acme/empty") is None
    assert "code" in KnownAdapters(frozenset(), registry)
    assert "other" not in KnownAdapters(frozenset({"poems"}), registry)


@pytest.mark.parametrize("name", ["", "..", "../code", "/code", "code/", "acme/../code", "a/b/c", ".next.partial/whole"])
def test_names_that_leave_the_registry_are_unknown(tmp_path: Path, name: str) -> None:
    put(tmp_path / "registry" / "acme" / ".next.partial" / "whole")
    put(tmp_path / "code")
    assert AdapterRegistry(tmp_path / "registry").find(name) is None


def test_missing_registry_has_no_adapters() -> None:
    registry = AdapterRegistry(None)
    registry.refresh()
    assert (registry.exists, registry.current, registry.find("code")) == (False, (), None)
