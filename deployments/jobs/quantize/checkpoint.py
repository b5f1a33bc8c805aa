"""Writes a quantised checkpoint: the original's files, with other tensors for the matrices of its layers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deployments.jobs.quantize.calibration import Stored
from deployments.jobs.quantize.schemes import Scheme

REPORT = "quantization.json"
_SMALL_FILES = ("*.json", "*.txt", "*.jinja")


def publish(original: Path, output: Path, scheme: Scheme, stored: Stored, report: Mapping[str, Any]) -> None:
    """A folder that is there whole, or not at all. Raises OSError."""
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for pattern in _SMALL_FILES:
        for file in original.glob(pattern):
            if file.name != "model.safetensors.index.json":
                shutil.copy(file, aside / file.name)
    save_file(_tensors(original, scheme, stored), aside / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    (aside / "config.json").write_text(json.dumps({**config, "quantization_config": scheme.config()}, indent=2) + "\n", encoding="utf-8")
    (aside / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    aside.replace(output)


def weight_bytes(folder: Path) -> int:
    """Of all tensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _tensors(original: Path, scheme: Scheme, stored: Stored) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(original.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                layer = name.removesuffix(".weight")
                if layer in stored:
                    kept = scheme.stored(*stored[layer], opened.get_tensor(name).dtype)
                    tensors |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in kept.items()}
                else:
                    tensors[name] = opened.get_tensor(name)
    return tensors
