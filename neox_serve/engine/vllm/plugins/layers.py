"""Embeddings from a chosen layer: tells vLLM to build and load only the first layers of a model.

The model class that does it is in `layers_model`. vLLM finds it through the entry point `vllm.general_plugins`, in every process of an
engine. This module imports nothing of vLLM's models before they are needed.
"""

from dataclasses import replace
from typing import Any

from neox_serve.model.facts import ModelFacts
from neox_serve.settings.slices import EmbeddingOutputSettings

ARCHITECTURE = "NeoxServeLayers"
"""Name of the model class in vLLM's registry."""
WHOLE_LAYERS = "neox_serve_whole_layers"
"""Key in the model's configuration: how many layers the checkpoint has."""
FINAL_LAYER_NORM = "neox_serve_final_layer_norm"
"""Key in the model's configuration: whether the final layer norm is applied."""


def loaded_facts(output: EmbeddingOutputSettings | None, facts: ModelFacts) -> ModelFacts:
    """Returns the facts of the part of a model that an engine loads: an embedding engine loads no layer above its own.

    `output` is None for the generation pool.
    """
    return replace(facts, layers=output.layer) if output and output.layer else facts


def final_layer_norm(output: EmbeddingOutputSettings, facts: ModelFacts) -> bool:
    """Returns whether the model's final layer norm is applied to embeddings."""
    return output.layer in {None, facts.layers} if output.final_layer_norm is None else output.final_layer_norm


def register() -> None:
    """Registers the model class with vLLM. vLLM calls it through the entry point."""
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"neox_serve.engine.vllm.plugins.layers_model:{ARCHITECTURE}")


def overrides(layer: int, whole_layers: int, *, final_layer_norm: bool) -> dict[str, Any]:
    """Returns vLLM's hf_overrides for the checkpoint's configuration. `layer` is the last one to build, counted from 1."""
    return {
        "architectures": [ARCHITECTURE],
        "num_hidden_layers": layer,
        WHOLE_LAYERS: whole_layers,
        FINAL_LAYER_NORM: final_layer_norm,
    }
