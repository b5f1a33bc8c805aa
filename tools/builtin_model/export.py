"""Conversion of a training checkpoint to a model folder that transformers and vLLM can load. Each file is written atomically."""

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
"""Maximum size of the model folder, which is part of the repository."""
WEIGHTS_FILE = "model.safetensors"
"""Name of the weights file."""


def tokenizer_config() -> dict[str, Any]:
    """Returns the content of tokenizer_config.json, which AutoTokenizer needs in addition to tokenizer.json."""
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
    """Returns config.json as written by transformers, with the older names of the rotary fields added for other readers."""
    rope = saved["rope_parameters"]
    extra = {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"], "use_cache": True}
    return {**saved, **extra}


def export_model(model: GPTNeoXForCausalLM, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float16) -> int:
    """Writes weights, configuration and tokenizer to `folder`, and returns the folder's size in bytes.

    Raises ValueError if the folder would be larger than MAX_FOLDER_BYTES.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        partial_folder = Path(name)
        _write_model(model, partial_folder, dtype)
        tokenizer.save(str(partial_folder / "tokenizer.json"))
        _write_json(partial_folder / "tokenizer_config.json", tokenizer_config())
        size_bytes = sum(file.stat().st_size for file in partial_folder.iterdir())
        if size_bytes > MAX_FOLDER_BYTES:
            raise ValueError(f"the model folder would have {size_bytes} bytes; at most {MAX_FOLDER_BYTES} are allowed")
        # The weights come last, so that a reader that waits for them finds all other files.
        for file in sorted(partial_folder.iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
            file.chmod(0o644)
            file.replace(folder / file.name)
    return sum(file.stat().st_size for file in folder.iterdir())


def _write_model(model: GPTNeoXForCausalLM, folder: Path, dtype: torch.dtype) -> None:
    """Writes the weights in `dtype`, config.json and generation_config.json. `model` is copied and does not change."""
    copied = GPTNeoXForCausalLM(built_in_config())
    copied.load_state_dict(model.state_dict())
    copied.to(dtype)
    copied.generation_config.pad_token_id = copied.config.pad_token_id
    copied.save_pretrained(folder)
    path = folder / "config.json"
    _write_json(path, model_config(json.loads(path.read_text(encoding="utf-8"))))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
