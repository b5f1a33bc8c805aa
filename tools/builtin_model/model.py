"""The architecture of the built-in model, its initial weights, and its reference loss."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tools.builtin_model.tokenizer import END_OF_TEXT_ID, PADDING_ID, VOCAB_SIZE

INITIALIZER_STD = 0.02
"""Standard deviation of the initial weights."""


def built_in_config() -> GPTNeoXConfig:
    """Returns a GPT-NeoX configuration with about 6.8 M parameters.

    Every width is a multiple of 128, so that tensor parallelism over 2 GPUs and group-wise quantization are possible.
    """
    return GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        rotary_emb_base=10000,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        hidden_act="gelu",
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=PADDING_ID,
    )


def new_model(seed: int) -> GPTNeoXForCausalLM:
    """Returns a model with random weights. Layers that write to the residual stream have smaller weights.

    Source: GPT-NeoX's `wang_init` and GPT-2, which scale residual output layers down with the depth.
    """
    torch.manual_seed(seed)
    config = built_in_config()
    config.use_cache = False
    model = GPTNeoXForCausalLM(config)
    scale = INITIALIZER_STD / (2 * config.num_hidden_layers) ** 0.5
    with torch.no_grad():
        for layer in model.gpt_neox.layers:
            torch.nn.init.normal_(layer.attention.dense.weight, std=scale)
            torch.nn.init.normal_(layer.mlp.dense_4h_to_h.weight, std=scale)
    return model


def next_token_loss(model: GPTNeoXForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy in nats of each token given the previous ones; `tokens` is (sequences, sequence_tokens)."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Returns AdamW's parameter groups: weight decay applies to matrices, but not to biases and norms."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
