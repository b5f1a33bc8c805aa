"""Turns a training checkpoint into the model folder that transformers and vLLM load. Every file appears whole or not at all."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPTNeoXForCausalLM

from tools.builtin_model.model import built_in_config
from tools.builtin_model.tokenizer import END_OF_TEXT, PADDING

MAX_FOLDER_BYTES = 16_000_000
WEIGHTS_FILE = "model.safetensors"


def tokenizer_config() -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json."""
    return {
        "tokenizer_class": "GPTNeoXTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": PADDING,
        "clean_up_tokenization_spaces": False,
        "model_max_length": built_in_config().max_position_embeddings,
    }


def model_config(saved: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers wrote it, plus the older names of the rotary fields that other readers look for."""
    rope = saved["rope_parameters"]
    extra = {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"], "use_cache": True}
    return {**saved, **extra}


def export_model(model: GPTNeoXForCausalLM, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float16) -> int:
    """Write weights, configs and tokenizer into `folder`; returns the folder's size in bytes.

    Raises:
        ValueError: the folder would be larger than MAX_FOLDER_BYTES.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        aside = Path(name)
        _write_model(model, aside, dtype)
        tokenizer.save(str(aside / "tokenizer.json"))
        _write_json(aside / "tokenizer_config.json", tokenizer_config())
        size_bytes = sum(file.stat().st_size for file in aside.iterdir())
        if size_bytes > MAX_FOLDER_BYTES:
            raise ValueError(f"the model folder would be {size_bytes} bytes; allowed: {MAX_FOLDER_BYTES}")
        # Weights last: whoever waits for them then finds everything else in place.
        for file in sorted(aside.iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
            file.chmod(0o644)
            file.replace(folder / file.name)
    return sum(file.stat().st_size for file in folder.iterdir())


def _write_model(model: GPTNeoXForCausalLM, folder: Path, dtype: torch.dtype) -> None:
    """Weights in `dtype`, config.json and generation_config.json, from a copy so that `model` stays as it was."""
    copied = GPTNeoXForCausalLM(built_in_config())
    copied.load_state_dict(model.state_dict())
    copied.to(dtype)
    copied.generation_config.pad_token_id = copied.config.pad_token_id
    copied.save_pretrained(folder)
    path = folder / "config.json"
    _write_json(path, model_config(json.loads(path.read_text(encoding="utf-8"))))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
