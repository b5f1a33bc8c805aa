"""Machines, models and settings that the tests of engine checks share."""

from typing import Any

from neox_serve.core.types import Pool
from neox_serve.engine.hardware import Machine
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, restore
from tests.unit.model.test_facts import PUBLISHED_20B

GIB = 1 << 30
AVX2 = Machine(frozenset({"avx2"}), cores=4, memory_bytes=16 * GIB)
AVX512 = Machine(frozenset({"avx2", "avx512f", "avx512_bf16"}), cores=4, memory_bytes=16 * GIB)
SMALL = ModelFacts.from_config(
    PUBLISHED_20B | {"num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 4096}
)
LARGE = ModelFacts.from_config(PUBLISHED_20B)


def settings_of(pool: Pool = Pool.GENERATION, *, gpus: float = 0.0, model: dict[str, Any] | None = None, **engine: Any) -> Settings:
    """Returns settings with these engine settings for a pool."""
    return restore({"model": model or {}, pool.value: {"engine": engine, "replicas": {"gpus_per_worker": gpus}}})
