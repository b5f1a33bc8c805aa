"""ModelFacts reads both formats of a GPT-NeoX config and names invalid keys."""

from typing import Any

import pytest

from neox_serve.model.facts import ModelFacts

PUBLISHED_20B = {
    "model_type": "gpt_neox",
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "vocab_size": 50432,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "eos_token_id": 0,
    "torch_dtype": "float16",
}


def test_from_config_published_20b_gives_its_shape() -> None:
    facts = ModelFacts.from_config(PUBLISHED_20B)
    assert (facts.layers, facts.heads, facts.head_size, facts.positions) == (44, 64, 96, 2048)
    assert (facts.rotary_fraction, facts.parallel_residual, facts.tied_embeddings) == (0.25, True, False)
    assert facts.weights_dtype == "float16"


def test_from_config_transformers_5_spelling_is_read() -> None:
    config = {key: value for key, value in PUBLISHED_20B.items() if key not in {"rotary_pct", "torch_dtype"}}
    facts = ModelFacts.from_config(config | {"rope_parameters": {"partial_rotary_factor": 0.5}, "dtype": "bfloat16"})
    assert (facts.rotary_fraction, facts.weights_dtype) == (0.5, "bfloat16")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("num_hidden_layers", 0),
        ("num_attention_heads", "64"),
        ("hidden_size", 6145),
        ("vocab_size", None),
        ("max_position_embeddings", True),
        ("rotary_pct", 0),
        ("rotary_pct", "a quarter"),
        ("eos_token_id", None),
        ("eos_token_id", 50432),
        ("use_parallel_residual", 1),
    ],
)
def test_from_config_bad_value_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        ModelFacts.from_config(PUBLISHED_20B | {key: value})
