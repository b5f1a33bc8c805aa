"""Embeddings from a chosen layer: what says to vLLM that only the first layers are to be built and loaded.

The model class that does it is in `vllm_layers`; vLLM learns of it by the entry point `vllm.general_plugins`, in every process of an
engine. Nothing of vLLM's models is imported before it is needed.
"""

from typing import Any

ARCHITECTURE = "NeoxServeLayers"
WHOLE_LAYERS, FINAL_LAYER_NORM = "neox_serve_whole_layers", "neox_serve_final_layer_norm"
"""In the model's configuration: how many layers the checkpoint has, and whether its final layer norm is applied."""


def register() -> None:
    """The entry point."""
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"neox_serve.engine.vllm_layers:{ARCHITECTURE}")


def overrides(layer: int, whole_layers: int, *, final_layer_norm: bool) -> dict[str, Any]:
    """vLLM's hf_overrides of the checkpoint's configuration. layer: the last one that is built, the first being 1."""
    return {
        "architectures": [ARCHITECTURE],
        "num_hidden_layers": layer,
        WHOLE_LAYERS: whole_layers,
        FINAL_LAYER_NORM: final_layer_norm,
    }
