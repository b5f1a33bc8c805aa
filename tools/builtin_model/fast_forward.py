"""The loss of GPTNeoXForCausalLM, rearranged so that a CPU with bfloat16 tiles spends most of its time in matrix products.

The forward pass of transformers is the reference, and a unit test compares both. They differ in two respects:

* With a parallel residual, both branches read the same normalized input. The gain and bias of each layer norm are folded into the branch's
  first matrix, so that one product computes queries, keys, values and the MLP's hidden layer, and another one adds both branches' outputs.
* The gradient of the loss is computed in chunks together with the logits, so that no (tokens, vocabulary) tensor is kept.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import GPTNeoXForCausalLM

LOSS_CHUNK_TOKENS = 1024
"""Number of tokens whose logits are computed at a time."""


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed
    """Mean cross-entropy of `hidden @ weight.T` against `targets`; hidden is (tokens, width), in bfloat16 or float32."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        compute_weight = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        total = torch.zeros((), dtype=torch.float32)
        count = len(targets)
        for start in range(0, count, LOSS_CHUNK_TOKENS):
            chunk = hidden[start : start + LOSS_CHUNK_TOKENS]
            wanted = targets[start : start + LOSS_CHUNK_TOKENS, None]
            log_probabilities = functional.log_softmax(functional.linear(chunk, compute_weight).float(), dim=-1)
            total -= log_probabilities.gather(1, wanted).sum()
            grad_logits = log_probabilities.exp_()
            grad_logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
            scaled = grad_logits.div_(count).to(hidden.dtype)
            grad_hidden[start : start + LOSS_CHUNK_TOKENS] = scaled @ compute_weight
            grad_weight += scaled.T @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0], None


def rotary_tables(sequence_tokens: int, rotary_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosines and sines, each float32 of shape (sequence_tokens, rotary_dim).

    Source: RoFormer, with the halves rotated as in GPT-NeoX.
    """
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2).float() / rotary_dim)
    angles = torch.outer(torch.arange(sequence_tokens).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies rotary embeddings to the first dimensions of (..., sequence_tokens, head_dim)."""
    rotary_dim = cos.shape[-1]
    rotated, passed = heads[..., :rotary_dim], heads[..., rotary_dim:]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return torch.cat([rotated * cos + turned * sin, passed], dim=-1)


def _attend(qkv: torch.Tensor, heads: int, tables: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Returns the causal attention (..., width) of `qkv`, which is (sequences, sequence_tokens, 3 * width) ordered by head."""
    sequences, tokens, triple = qkv.shape
    head_dim = triple // 3 // heads
    query, key, value = qkv.view(sequences, tokens, heads, 3 * head_dim).transpose(1, 2).chunk(3, dim=-1)
    query = _rotate(query, *tables) * head_dim**-0.5
    key = _rotate(key, *tables)
    scores = torch.matmul(query, key.transpose(-1, -2)) + mask
    attended = torch.matmul(functional.softmax(scores, dim=-1), value)
    return attended.transpose(1, 2).reshape(sequences, tokens, heads * head_dim)


def _folded(norm: torch.nn.LayerNorm, linear: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a weight and bias that give the result of `linear(norm(.))` for the normalized input."""
    return linear.weight * norm.weight, torch.mv(linear.weight, norm.bias) + linear.bias


def _layer(layer: Any, hidden: torch.Tensor, heads: int, tables: Any, mask: torch.Tensor) -> torch.Tensor:
    """Applies one parallel-residual layer to (sequences, sequence_tokens, width). The residual stream is float32."""
    dtype = mask.dtype
    attention_in = _folded(layer.input_layernorm, layer.attention.query_key_value)
    mlp_in = _folded(layer.post_attention_layernorm, layer.mlp.dense_h_to_4h)
    weight_in, bias_in = (torch.cat(pair).to(dtype) for pair in zip(attention_in, mlp_in, strict=True))
    weight_out = torch.cat([layer.attention.dense.weight, layer.mlp.dense_4h_to_h.weight], dim=1).to(dtype)
    bias_out = (layer.attention.dense.bias + layer.mlp.dense_4h_to_h.bias).to(dtype)
    width = hidden.shape[-1]
    normalised = functional.layer_norm(hidden, (width,), eps=layer.input_layernorm.eps).to(dtype)
    qkv, inner = functional.linear(normalised, weight_in, bias_in).split([3 * width, len(bias_in) - 3 * width], -1)
    branches = torch.cat([_attend(qkv, heads, tables, mask), functional.gelu(inner)], dim=-1)
    return hidden + functional.linear(branches, weight_out, bias_out)


def fast_loss(model: GPTNeoXForCausalLM, tokens: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Returns the mean cross-entropy in nats of each token given the previous ones; `tokens` is (sequences, sequence_tokens).

    Matrix products use `dtype`. Weights, residual stream, norms and loss are float32.
    """
    config = model.config
    sequence_tokens = tokens.shape[1]
    rotary_dim = int(config.hidden_size // config.num_attention_heads * config.rope_parameters["partial_rotary_factor"])
    tables = rotary_tables(sequence_tokens, rotary_dim, config.rope_parameters["rope_theta"])
    tables = (tables[0].to(dtype), tables[1].to(dtype))
    mask = torch.full((sequence_tokens, sequence_tokens), torch.finfo(dtype).min, dtype=dtype).triu(1)
    hidden = model.gpt_neox.embed_in(tokens)  # including the last position, because 512 rows are multiplied faster than 511
    for layer in model.gpt_neox.layers:
        hidden = _layer(layer, hidden, config.num_attention_heads, tables, mask)
    weight, bias = model.gpt_neox.final_layer_norm.weight, model.gpt_neox.final_layer_norm.bias
    final = functional.layer_norm(hidden, (config.hidden_size,), weight, bias, config.layer_norm_eps).to(dtype)
    loss: torch.Tensor = _LinearCrossEntropy.apply(final[:, :-1].flatten(0, 1), model.lm_head.weight, tokens[:, 1:].flatten())
    return loss
