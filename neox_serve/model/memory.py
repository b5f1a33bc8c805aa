"""Memory that a GPT-NeoX model needs.

Source: the shapes of transformers' GPTNeoXForCausalLM. The linear layers of the blocks can be quantized; embeddings, norms and biases are
not. Quantized weights have scales of the unquantized data type: int8 one per output, int4 one per 128 inputs of each output.
"""

import math
from enum import StrEnum

from neox_serve.model.facts import ModelFacts

INT4_GROUP = 128
"""Number of inputs that share a scale in int4."""


class Quantization(StrEnum):
    """How the weights of linear layers are stored."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


def linear_weights(facts: ModelFacts) -> int:
    """Returns the number of weights in the linear layers of all blocks, without biases."""
    attention = facts.hidden_size * 4 * facts.hidden_size
    return facts.layers * (attention + 2 * facts.hidden_size * facts.intermediate_size)


def parameters(facts: ModelFacts, vocabulary_size: int | None = None) -> int:
    """Returns the number of parameters. vocabulary_size: padded size as in the checkpoint; by default that of config.json."""
    biases = 3 * facts.hidden_size + facts.hidden_size + facts.intermediate_size + facts.hidden_size
    norms = 4 * facts.hidden_size
    embeddings = (1 if facts.tied_embeddings else 2) * (vocabulary_size or facts.vocabulary_size) * facts.hidden_size
    return linear_weights(facts) + facts.layers * (biases + norms) + 2 * facts.hidden_size + embeddings


def weight_bytes(facts: ModelFacts, quantization: Quantization = Quantization.NONE, element_bytes: int = 2) -> int:
    """Returns the size of all weights in bytes. element_bytes: size of an unquantized value and of a scale."""
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
    """Returns the KV cache bytes per token over all layers. Every head has its own keys and values (multi-head attention)."""
    return 2 * facts.layers * facts.hidden_size * element_bytes


def kv_tokens_that_fit(room_bytes: float, facts: ModelFacts, weights_bytes: int, element_bytes: int = 2) -> int:
    """Returns how many tokens of KV cache fit in `room_bytes` beside the weights; negative if the weights do not fit."""
    return math.floor((room_bytes - weights_bytes) / kv_bytes_per_token(facts, element_bytes))
