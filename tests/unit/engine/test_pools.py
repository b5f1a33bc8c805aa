"""The executor backend of an engine."""

from typing import Any

import pytest

from neox_serve.engine.pools import executor_backend
from neox_serve.settings.engines import EngineSettings, ReplicaSettings


@pytest.mark.parametrize(
    ("engine", "gpus", "backend"),
    [
        ({}, 0, "uni"),
        ({"cpu_threads_bind": "0-1"}, 0, "mp"),
        ({"tensor_parallel_size": 2}, 0, "mp"),
        ({"tensor_parallel_size": 8}, 1, "mp"),
        ({"tensor_parallel_size": 8, "pipeline_parallel_size": 2}, 1, "ray"),
        ({"executor_backend": "mp"}, 0, "mp"),
    ],
)
def test_executor_backend_depends_on_workers_and_hardware(engine: dict[str, Any], gpus: int, backend: str) -> None:
    assert executor_backend(EngineSettings(**engine), ReplicaSettings(gpus_per_worker=gpus)) == backend
