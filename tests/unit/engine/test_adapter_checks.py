"""Checks of LoRA adapters against the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from neox_serve.engine.adapter_checks import configured_adapter_problems
from tests.unit.engine.machines import SMALL, settings_of

MakeAdapter = Callable[..., Path]


@pytest.fixture
def adapter(tmp_path: Path) -> MakeAdapter:
    def make(*, rank: int = 8, hidden: int = 256, config: dict[str, Any] | None = None) -> Path:
        name = "base_model.model.gpt_neox.layers.0.attention.query_key_value"
        shapes = {f"{name}.lora_A.weight": (rank, hidden), f"{name}.lora_B.weight": (3 * hidden, rank)}
        save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank} if config is None else config))
        return tmp_path

    return make


def adapter_problems(path: str) -> str:
    chosen = settings_of(model={"adapters": [{"name": "a", "path": path}]})
    return "\n".join(configured_adapter_problems(chosen.model, SMALL, chosen.generation.engine.max_lora_rank))


def test_check_of_a_matching_adapter_passes(adapter: MakeAdapter) -> None:
    assert adapter_problems(str(adapter())) == ""


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"rank": 32}, "rank r 32: must be 1 to max_lora_rank, 16"),
        ({"hidden": 512}, "it was made for another base model"),
        ({"config": {}}, "rank r None"),
        ({"config": {"r": "8"}}, "rank r '8'"),
    ],
)
def test_check_of_an_unusable_adapter_names_its_path(adapter: MakeAdapter, made: dict[str, Any], complaint: str) -> None:
    text = adapter_problems(str(adapter(**made)))
    assert text.startswith("model.adapters.0.path: ")
    assert complaint in text


def test_check_of_a_missing_adapter_folder_names_its_path() -> None:
    assert "model.adapters.0.path: '/no/such': is not a folder" in adapter_problems("/no/such")
