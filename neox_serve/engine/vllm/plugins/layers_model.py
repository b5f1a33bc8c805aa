"""A model class for vLLM: GPT-NeoX up to a layer. Layers above it are neither built nor loaded."""

from typing import Any

from torch import nn
from vllm.model_executor.models.transformers import TransformersForCausalLM

from neox_serve.engine.vllm.plugins.layers import FINAL_LAYER_NORM, WHOLE_LAYERS


class NeoxServeLayers(TransformersForCausalLM):  # type: ignore[misc]  # vLLM's classes are untyped here
    """The first layers of a GPT-NeoX model, with or without its final layer norm."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        above = range(self.config.num_hidden_layers, getattr(self.config, WHOLE_LAYERS))
        self.ignore_unexpected_prefixes += ["embed_out.", *(f"model.layers.{layer}." for layer in above)]
        if not getattr(self.config, FINAL_LAYER_NORM):
            self.model.final_layer_norm = nn.Identity()
            self.ignore_unexpected_prefixes.append("model.final_layer_norm.")
