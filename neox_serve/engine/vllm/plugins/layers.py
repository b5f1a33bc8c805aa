"""Embeddings from a chosen layer: what says to vLLM that only the first layers are to be built and loaded.

The model class that does it is in `vllm_layers`; vLLM learns of it by the entry point `vllm.general_plugins`, in every process of an
engine. Nothing of vLLM's models is imported before it is needed.
"""

from dataclasses import replace
from typing import Any

from neox_serve.core.types import Pool
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings

ARCHITECTURE = "NeoxServeLayers"
WHOLE_LAYERS, FINAL_LAYER_NORM = "neox_serve_whole_layers", "neox_serve_final_layer_norm"
"""In the model's configuration: how many layers the checkpoint has, and whether its final layer norm is applied."""


def loaded_facts(pool: Pool, settings: Settings, facts: ModelFacts) -> ModelFacts:
    """What the pool's engines load of a model: an embedding pool no layer above its own."""
    return facts if pool is Pool.GENERATION else replace(facts, layers=settings.embedding.layer or facts.layers)


def final_layer_norm(settings: Settings, facts: ModelFacts) -> bool:
    """Whether embeddings have the model's final layer norm."""
    chosen = settings.embedding.final_layer_norm
    return settings.embedding.layer in {None, facts.layers} if chosen is None else chosen


def register() -> None:
    """The entry point."""
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"neox_serve.engine.vllm.plugins.layers_model:{ARCHITECTURE}")


def overrides(layer: int, whole_layers: int, *, final_layer_norm: bool) -> dict[str, Any]:
    """vLLM's hf_overrides of the checkpoint's configuration. layer: the last one that is built, the first being 1."""
    return {
        "architectures": [ARCHITECTURE],
        "num_hidden_layers": layer,
        WHOLE_LAYERS: whole_layers,
        FINAL_LAYER_NORM: final_layer_norm,
    }
