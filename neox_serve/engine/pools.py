"""Which pools exist, and how the workers of an engine run."""

from collections.abc import Iterator

from neox_serve.core.types import Pool
from neox_serve.settings import Settings
from neox_serve.settings.engines import EngineSettings, ReplicaSettings

_GPUS_PER_NODE = 8
"""More workers than this are assumed not to fit on one node."""


def enabled_pools(settings: Settings) -> Iterator[Pool]:
    """Yields the pools that have engines."""
    yield Pool.GENERATION
    if settings.embedding.enabled:
        yield Pool.EMBEDDING


def executor_backend(engine: EngineSettings, replicas: ReplicaSettings) -> str:
    """Returns vLLM's executor backend: "uni", "mp" or "ray".

    "auto" is never passed on to vLLM, which chooses ray inside a placement group, where CPU workers then fail. For a single CPU worker it
    becomes "uni", which saves a process that spins while it waits; otherwise "mp" if all workers fit on one node, else "ray".
    """
    if engine.executor_backend != "auto":
        return engine.executor_backend
    if replicas.gpus_per_worker > 0:
        return "ray" if engine.workers > _GPUS_PER_NODE else "mp"
    return "uni" if engine.workers == 1 and engine.cpu_threads_bind in {"auto", "nobind"} else "mp"
