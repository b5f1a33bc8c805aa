"""The checkpoint that is read, and the one that is written: a file for each layer, there as soon as the layer is done.

The folder grows under another name and is renamed once it is whole, so that a job that was stopped goes on from the layers it finds.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from deployments.jobs.failures import JobError
from deployments.jobs.quantize.schemes import Scheme
from neox_serve.model.model_files import read_safetensors_header

REPORT = "quantization.json"
_INDEX = "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.txt", "*.jinja")

Stored = dict[str, torch.Tensor]
"""Tensors of a file, by their names in the checkpoint."""


class Tensors:
    """Of a checkpoint's files, read when they are asked for. get, below: raise JobError where a file is damaged."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: file for file in sorted(folder.glob("*.safetensors")) for name in read_safetensors_header(file)}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def get(self, name: str) -> torch.Tensor:
        """One tensor."""
        file = self._files.get(name)
        if file is None:
            raise JobError(f"--model: the checkpoint has no {name}", 2)
        try:
            with safe_open(file, "pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise JobError(f"{file}: is damaged: {error}", 2) from error

    def below(self, prefix: str) -> Stored:
        """Those whose names begin so, by the rest of the name."""
        return {name.removeprefix(prefix): self.get(name) for name in self if name.startswith(prefix)}


class Growing:
    """A checkpoint that is being made, in its folder. files: how many it will have."""

    def __init__(self, folder: Path, files: int) -> None:
        self.folder = folder
        self._files = files
        folder.mkdir(parents=True, exist_ok=True)

    def found(self, number: int) -> Stored | None:
        """The tensors of a file from before; None where it is not there, or not whole."""
        try:
            with safe_open(self._file(number), "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError):
            return None

    def write(self, number: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """A file, whole or not at all. Raises OSError."""
        file = self._file(number)
        aside = file.with_suffix(".aside")
        _save(tensors, aside)
        aside.chmod(0o644)  # safetensors makes files for their owner alone; engines may run as another user
        aside.replace(file)

    def complete(self, original: Path, scheme: Scheme) -> None:
        """All that goes with the weights. Raises OSError."""
        for pattern in _SMALL_FILES:
            for file in original.glob(pattern):
                if file.name not in {_INDEX, REPORT}:
                    shutil.copy(file, self.folder / file.name)
        config = json.loads((original / "config.json").read_text(encoding="utf-8"))
        _write_json(self.folder / "config.json", {**config, "quantization_config": scheme.config()})
        _write_json(self.folder / _INDEX, {"metadata": {"total_size": weight_bytes(self.folder)}, "weight_map": self._weight_map()})

    def publish(self, output: Path, report: Mapping[str, Any]) -> None:
        """The report, then the folder under its name. Raises OSError."""
        _write_json(self.folder / REPORT, report)
        self.folder.replace(output)

    def _weight_map(self) -> dict[str, str]:
        files = sorted(self.folder.glob("*.safetensors"))
        return {name: file.name for file in files for name in read_safetensors_header(file)}

    def _file(self, number: int) -> Path:
        return self.folder / f"model-{number + 1:05}-of-{self._files:05}.safetensors"


def weight_bytes(folder: Path) -> int:
    """Of all files of weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
