"""Which part of the settings belongs to which pool."""

from collections.abc import Iterator

from neox_serve.core.types import Pool
from neox_serve.settings import Settings
from neox_serve.settings.engines import EngineSettings, ReplicaSettings

_GPUS_OF_A_NODE = 8


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


def executor_backend(engine: EngineSettings, replicas: ReplicaSettings) -> str:
    """How the workers run. "auto" is uni for an engine's only worker on CPUs, which saves a process that spins while it waits; else mp
    where they fit on one node, else ray.

    It is never left to vLLM, which picks ray inside a placement group, where CPU workers then fail.
    """
    if engine.executor_backend != "auto":
        return engine.executor_backend
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    if replicas.gpus_per_worker > 0:
        return "ray" if workers > _GPUS_OF_A_NODE else "mp"
    return "uni" if workers == 1 and engine.cpu_threads_bind in {"auto", "nobind"} else "mp"
