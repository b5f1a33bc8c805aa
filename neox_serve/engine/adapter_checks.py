"""Checks whether LoRA adapters can run on the model. A failed check stops no engine: only requests that name the adapter fail."""

from collections.abc import Iterator
from pathlib import Path

from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import SettingsError
from neox_serve.settings.engines import ModelSettings


def configured_adapter_problems(model: ModelSettings, facts: ModelFacts, max_rank: int) -> Iterator[str]:
    """Yields messages about local adapters of the settings that cannot run. Remote adapters are checked when they are fetched."""
    for index, adapter in enumerate(model.adapters):
        setting, folder = f"model.adapters.{index}.path", Path(adapter.path).expanduser()
        if folder.is_dir():
            yield from check_adapter(folder, facts, max_rank, setting)
        elif adapter.path.startswith(("/", ".", "~")):
            yield f"{setting}: {adapter.path!r}: is not a folder"


def check_adapter(folder: Path, facts: ModelFacts, max_rank: int, setting: str) -> Iterator[str]:
    """Yields messages about an adapter that cannot run on a model of these facts. Each begins with `setting`."""
    try:
        config = model_files.read_json(folder / "adapter_config.json", setting=setting)
    except SettingsError as error:
        yield str(error)
        return
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        yield f"{setting}: {folder}: rank r {rank!r}: must be 1 to max_lora_rank, {max_rank}"
        return
    for name, expected in (("lora_A", facts.hidden_size), ("lora_B", 3 * facts.hidden_size)):
        for shape in _attention_shapes(folder, name):
            if expected not in shape or rank not in shape:
                yield f"{setting}: {folder}: {name} of query_key_value has shape {shape}: it was made for another base model"
                return


def _attention_shapes(folder: Path, name: str) -> Iterator[list[int]]:
    """Yields the shapes of an adapter's tensors for query_key_value, read from the headers of its safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        for key, tensor in model_files.read_safetensors_header(path).items():
            if name in key and "query_key_value" in key:
                yield tensor["shape"]
