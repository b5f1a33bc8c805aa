"""The checkpoint that is read, and the one that is written: a file for each layer, written as soon as the layer is done.

The folder has a temporary name until it is complete, so a run that was interrupted continues from the layers that it finds.
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
from neox_serve.core.jobs.quantize import REPORT_FILE
from neox_serve.model.model_files import read_safetensors_header

"""Name of the file that reports sizes and quality."""
_INDEX = "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.txt", "*.jinja")

Stored = dict[str, torch.Tensor]
"""Tensors by their names in the checkpoint."""


class Tensors:
    """The tensors of a checkpoint, read on demand."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: file for file in sorted(folder.glob("*.safetensors")) for name in read_safetensors_header(file)}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def get(self, name: str) -> torch.Tensor:
        """Reads a tensor. Raises JobError if it does not exist or its file is damaged."""
        file = self._files.get(name)
        if file is None:
            raise JobError(f"--model: the checkpoint has no {name}", 2)
        try:
            with safe_open(file, "pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise JobError(f"{file} is damaged: {error}", 2) from error

    def with_prefix(self, prefix: str) -> Stored:
        """Reads the tensors whose names start with `prefix`, by the rest of their names. Raises JobError if a file is damaged."""
        return {name.removeprefix(prefix): self.get(name) for name in self if name.startswith(prefix)}


class UnfinishedCheckpoint:
    """A checkpoint that is being written, in a temporary folder."""

    def __init__(self, folder: Path, files: int) -> None:
        """`files` is the number of weight files that the checkpoint will have."""
        self.folder = folder
        self._files = files
        folder.mkdir(parents=True, exist_ok=True)

    def found(self, number: int) -> Stored | None:
        """Returns the tensors of a file from an earlier run; None if it does not exist or is incomplete."""
        try:
            with safe_open(self._file(number), "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError):
            return None

    def write(self, number: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes a file as a whole. Raises OSError."""
        file = self._file(number)
        temporary = file.with_suffix(".new")
        _save(tensors, temporary)
        temporary.chmod(0o644)  # safetensors creates files that only their owner can read; engines may run as another user
        temporary.replace(file)

    def complete(self, original: Path, scheme: Scheme) -> None:
        """Writes the files that belong to the weights: configuration, tokenizer and index. Raises OSError."""
        for pattern in _SMALL_FILES:
            for file in original.glob(pattern):
                if file.name not in {_INDEX, REPORT_FILE}:
                    shutil.copy(file, self.folder / file.name)
        config = json.loads((original / "config.json").read_text(encoding="utf-8"))
        _write_json(self.folder / "config.json", {**config, "quantization_config": scheme.config()})
        _write_json(self.folder / _INDEX, {"metadata": {"total_size": weight_bytes(self.folder)}, "weight_map": self._weight_map()})

    def publish(self, output: Path, report: Mapping[str, Any]) -> None:
        """Writes the report, then renames the folder to `output`. Raises OSError."""
        _write_json(self.folder / REPORT_FILE, report)
        self.folder.replace(output)

    def _weight_map(self) -> dict[str, str]:
        files = sorted(self.folder.glob("*.safetensors"))
        return {name: file.name for file in files for name in read_safetensors_header(file)}

    def _file(self, number: int) -> Path:
        return self.folder / f"model-{number + 1:05}-of-{self._files:05}.safetensors"


def weight_bytes(folder: Path) -> int:
    """Returns the size of all weight files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
