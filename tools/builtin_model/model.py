"""The architecture and its initial weights, and the loss both training and evaluation use."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tools.builtin_model.tokenizer import END_OF_TEXT_ID, PADDING_ID, VOCAB_SIZE

INITIALIZER_STD = 0.02


def built_in_config() -> GPTNeoXConfig:
    """GPT-NeoX at about 6.8 M parameters; every width divides by 128, so TP=2 and group quantisation fit."""
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
    """A model with weights drawn from `seed`; layers that write to the residual stream start smaller.

    Source: GPT-NeoX's `wang_init` and GPT-2 scale residual output layers down with depth.
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
    """Mean cross-entropy in nats of each token given those before it; `tokens` is (sequences, sequence_tokens)."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices decay, biases and norms do not."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
