"""The checkpoint in the repository: loads, tokenizes anything, and has learned Python better than xz."""

import json
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from tools.builtin_model.evaluate import complete, score_document, xz_bits_per_byte
from tools.builtin_model.export import MAX_FOLDER_BYTES

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).resolve().parents[3] / "neox_serve" / "builtin_model"
SMALL_HELDOUT_MODULE = "graphlib"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    return content


def test_folder_contains_all_files_within_the_size_limit() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == needed | {"README.md", "evaluation.json"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_FOLDER_BYTES


def test_config_is_gpt_neox_with_parallel_residual_and_quarter_rotary() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("gpt_neox", ["GPTNeoXForCausalLM"])
    assert config["use_parallel_residual"] is True
    assert config["rotary_pct"] == config["rope_parameters"]["partial_rotary_factor"] == 0.25
    assert config["tie_word_embeddings"] is False
    assert (config["max_position_embeddings"], config["vocab_size"]) == (2048, 4096)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 0, 1)
    assert config["dtype"] in {"float16", "bfloat16"}


def test_model_has_about_seven_million_parameters(model: GPTNeoXForCausalLM) -> None:
    assert 6_000_000 < sum(weight.numel() for weight in model.parameters()) < 8_000_000


@pytest.mark.parametrize(
    "text",
    [
        "Größe, façade, señor, naïve",
        "Ελληνικά και русский язык",
        "日本語の文章と 中文字符 그리고 한국어",
        "עברית العربية हिन्दी ไทย",
        "emoji 👩‍👩‍👧‍👦 🇩🇪 \U0001f9ea and maths ∀x∈ℝ",
        "tabs\tand\r\nline ends\n\n\n",
        "\x00\x01\x7f\u200b\ufeff",
    ],
)
def test_tokenizer_round_trips_any_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 23, 24, 25, 48, 100])
def test_tokenizer_round_trips_runs_of_spaces(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    text = f"x:\n{' ' * length}return{' ' * length}y{' ' * length}"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer(" " * length)["input_ids"]) == -(-length // 24)


def test_tokenizer_knows_its_special_tokens_and_length(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer("<|endoftext|>")["input_ids"] == [0]
    assert (len(tokenizer), tokenizer.model_max_length) == (4096, 2048)


def test_model_on_a_heldout_module_needs_fewer_bits_than_xz(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, evaluation: dict[str, Any]
) -> None:
    path = Path(sysconfig.get_paths()["stdlib"]) / f"{SMALL_HELDOUT_MODULE}.py"
    text = path.read_text(encoding="utf-8")
    score = score_document(model, tokenizer, path.name, text)
    # xz gets all held-out modules at once to learn from; the model starts each module anew.
    assert score.bits_per_byte < evaluation["heldout"]["xz_bits_per_byte"] < xz_bits_per_byte([text])


def test_evaluation_beats_xz_and_the_card_says_so(evaluation: dict[str, Any]) -> None:
    heldout = evaluation["heldout"]
    assert heldout["bits_per_byte"] < heldout["xz_bits_per_byte"]
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"**{heldout['bits_per_byte']:.3f} bits per byte**" in card
    assert f"**{heldout['xz_bits_per_byte']:.3f}**" in card


@pytest.mark.parametrize(
    ("prompt", "pattern"),
    [
        ("def fibonacci(n):", r"\n +(\"\"\"|return|if|for|while|try|\w+ =)"),
        ("import os\n", r"(import|from) \w+"),
        ("class Stack:\n    def __init__(self", r"(, \w+.*)?\):\n +(\"\"\"|self\.\w+)"),
    ],
)
def test_completion_looks_like_python(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, pattern: str) -> None:
    completion = complete(model, tokenizer, prompt, max_new_tokens=32)
    assert re.match(pattern, completion), completion


def test_model_uses_positions_up_to_its_context_length(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """The last quarter of 2048 tokens is predicted as well as the first, so long positions were trained."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "configparser.py").read_text(encoding="utf-8")
    stream = torch.tensor([tokenizer(text)["input_ids"][:2048]])
    with torch.inference_mode():
        logits = model(input_ids=stream).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, stream[0, 1:], reduction="none")
    assert losses[-512:].mean() < losses[:512].mean() + 0.2
