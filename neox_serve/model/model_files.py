"""Finds the files of a checkpoint: shipped with the package, in a local folder, or on a model hub.

Every error is a SettingsError that names the setting, because the setting has to be changed.
"""

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
from huggingface_hub.errors import HFValidationError

from neox_serve.model.facts import ModelFacts
from neox_serve.settings import SettingsError

BUILTIN = "builtin"
"""Source name of the model that is shipped with the package."""
_BUILTIN_FOLDER = Path(__file__).parents[1] / "builtin_model"
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_LONGEST_HEADER_BYTES = 100_000_000
_ALL_FILES = (*_SMALL_FILES, "*.safetensors")
_SETTING = "model.source"


def locate(source: str, revision: str | None, *, setting: str = _SETTING) -> Path:
    """Returns the folder of a complete checkpoint, after downloading it if `source` is a hub name.

    source: "builtin", a local folder or a hub name. Raises SettingsError that names `setting`.
    """
    folder = _find(source, revision, _ALL_FILES, setting)
    if not any(folder.glob("*.safetensors")):
        raise SettingsError(f"{setting}: {source}: contains no *.safetensors (looked in {folder})")
    return folder


def locate_tokenizer(source: str, revision: str | None, *, setting: str = _SETTING) -> Path:
    """Returns the folder with a checkpoint's config and tokenizer. From a hub only these small files are downloaded.

    Raises SettingsError that names `setting`.
    """
    folder = _find(source, revision, _SMALL_FILES, setting)
    if not (folder / "tokenizer.json").is_file():
        raise SettingsError(f"{setting}: {source}: contains no tokenizer.json (looked in {folder})")
    return folder


def locate_adapter(source: str, *, setting: str, cache: Path) -> Path:
    """Returns the folder of a LoRA adapter: a local folder, a copy of an fsspec URL in `cache`, or a download from the hub.

    Raises SettingsError that names `setting`.
    """
    local = _copied(source, cache, setting) if "://" in source else None
    folder = _find(str(local or source), None, _ALL_FILES, setting, needed="adapter_config.json")
    if not any(folder.glob("*.safetensors")):
        raise SettingsError(f"{setting}: {source}: contains no *.safetensors (looked in {folder})")
    return folder


def _copied(url: str, cache: Path, setting: str) -> Path:
    """Returns the local copy of a remote folder. The copy is made under another name and then renamed, so it is always complete."""
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=cache))
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.get(path.rstrip("/") + "/", f"{aside}/", recursive=True)
        with suppress(OSError):  # another process was first
            aside.rename(folder)
    except Exception as error:
        raise SettingsError(f"{setting}: {url}: cannot be copied: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def read_facts(folder: Path, *, setting: str = _SETTING) -> ModelFacts:
    """Reads the facts of the checkpoint in a folder. Raises SettingsError if config.json is unusable or describes another model type."""
    path = folder / "config.json"
    config = read_json(path, setting=setting)
    try:
        return ModelFacts.from_config(config)
    except ValueError as error:
        raise SettingsError(f"{setting}: {path}: {error}") from error


def read_json(path: Path, *, setting: str) -> dict[str, Any]:
    """Reads a JSON object from a file of a checkpoint. Raises SettingsError that names `setting`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{setting}: {path}: {error}") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{setting}: {path}: must contain a JSON object")
    return value


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Returns shapes and types of the tensors in a safetensors file by name, without reading their values. Empty for other files.

    Source: the safetensors format starts with a length (eight bytes, little-endian), followed by that many bytes of JSON.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _LONGEST_HEADER_BYTES else b""
    try:
        tensors = json.loads(header)
    except ValueError:
        return {}
    return {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}


def is_local(source: str) -> bool:
    """Returns whether a source needs no download."""
    return source == BUILTIN or Path(source).expanduser().is_dir()


def _find(source: str, revision: str | None, patterns: tuple[str, ...], setting: str, *, needed: str = "config.json") -> Path:
    folder = _local_folder(source) or _download(source, revision, patterns, setting)
    if not (folder / needed).is_file():
        raise SettingsError(f"{setting}: {source}: contains no {needed} (looked in {folder})")
    return folder


def _local_folder(source: str) -> Path | None:
    folder = _BUILTIN_FOLDER if source == BUILTIN else Path(source).expanduser()
    return folder.resolve() if folder.is_dir() else None


def _download(source: str, revision: str | None, patterns: tuple[str, ...], setting: str) -> Path:
    """Downloads from the hub. The hub library raises ValueError for bad names and subclasses of OSError for everything else."""
    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        allowed = f'"{BUILTIN}", a local folder or a hub name such as EleutherAI/gpt-neox-20b'
        raise SettingsError(f"{setting}: {source!r} is invalid; it must be {allowed}") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{setting}: {source!r} is not a local folder and cannot be downloaded from the hub: {error}") from error
