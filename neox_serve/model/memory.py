"""What a GPT-NeoX model takes of memory.

Source: the shapes of transformers' GPTNeoXForCausalLM. Linear layers of the blocks can be quantised; embeddings, norms and biases stay as
they are. Quantised weights carry scales of the same type as those: int8 one for each output, int4 one for each 128 inputs of each output.
"""

import math
from enum import StrEnum

from neox_serve.model.facts import ModelFacts

INT4_GROUP = 128


class Quantization(StrEnum):
    """How the weights of linear layers are kept."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


def linear_weights(facts: ModelFacts) -> int:
    """Weights of the linear layers of all blocks, biases left out."""
    attention = facts.hidden_size * 4 * facts.hidden_size
    return facts.layers * (attention + 2 * facts.hidden_size * facts.intermediate_size)


def parameters(facts: ModelFacts, vocabulary_size: int | None = None) -> int:
    """All parameters. vocabulary_size: padded, as the checkpoint stores it; absent: config.json's."""
    biases = 3 * facts.hidden_size + facts.hidden_size + facts.intermediate_size + facts.hidden_size
    norms = 4 * facts.hidden_size
    embeddings = (1 if facts.tied_embeddings else 2) * (vocabulary_size or facts.vocabulary_size) * facts.hidden_size
    return linear_weights(facts) + facts.layers * (biases + norms) + 2 * facts.hidden_size + embeddings


def weight_bytes(facts: ModelFacts, quantization: Quantization = Quantization.NONE, element_bytes: int = 2) -> int:
    """Of all weights. element_bytes: of what is not quantised, and of scales."""
    linear = linear_weights(facts)
    others = (parameters(facts) - linear) * element_bytes
    if quantization is Quantization.INT8:
        return others + linear + element_bytes * _outputs(facts)
    if quantization is Quantization.INT4:
        return others + linear // 2 + element_bytes * linear // INT4_GROUP
    return others + linear * element_bytes


def _outputs(facts: ModelFacts) -> int:
    return facts.layers * (3 * facts.hidden_size + facts.hidden_size + facts.intermediate_size + facts.hidden_size)


def kv_bytes_per_token(facts: ModelFacts, element_bytes: int = 2) -> int:
    """Of keys and values of all layers: every head has its own (multi-head attention)."""
    return 2 * facts.layers * facts.hidden_size * element_bytes


def kv_tokens_that_fit(room_bytes: float, facts: ModelFacts, weights_bytes: int, element_bytes: int = 2) -> int:
    """In room_bytes beside the weights; negative where the weights alone do not fit, by how much."""
    return math.floor((room_bytes - weights_bytes) / kv_bytes_per_token(facts, element_bytes))
