"""Which part of the settings belongs to which pool."""

from collections.abc import Iterator

from neox_serve.core.types import Pool
from neox_serve.settings import EngineSettings, ReplicaSettings, Settings


def enabled_pools(settings: Settings) -> Iterator[Pool]:
    """The pools that have engines."""
    yield Pool.GENERATION
    if settings.embedding.enabled:
        yield Pool.EMBEDDING


def engine_settings(pool: Pool, settings: Settings) -> EngineSettings:
    """The engine settings of a pool."""
    return settings.generation.engine if pool is Pool.GENERATION else settings.embedding.engine


def replica_settings(pool: Pool, settings: Settings) -> ReplicaSettings:
    """The replica settings of a pool."""
    return settings.generation.replicas if pool is Pool.GENERATION else settings.embedding.replicas


def on_gpu(pool: Pool, settings: Settings) -> bool:
    """Whether a pool's engines run on GPUs."""
    return replica_settings(pool, settings).gpus_per_worker > 0
