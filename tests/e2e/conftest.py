"""One cluster of real vLLM engines with the built-in model, for tests that need all parts."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import CommandCluster, free_port, running_cluster


def small_engine() -> dict[str, Any]:
    """Settings of an engine that starts quickly and leaves memory for another one."""
    return {"dtype": "float32", "kv_cache_gib": 0.25, "max_num_seqs": 32}


@pytest.fixture(scope="package")
def real_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandCluster]:
    """`neox-serve up` with one generation and one embedding replica."""
    values = {
        "generation": {"engine": small_engine()},
        "embedding": {"engine": small_engine()},
        "gateway": {"port": free_port()},
        "metrics": {"port": free_port()},
        "ray": {"dashboard_port": free_port()},
        "batch": {"tasks_folder": str(tmp_path_factory.mktemp("tasks"))},
        "model": {"registry": str(tmp_path_factory.mktemp("registry"))},
    }
    with running_cluster(tmp_path_factory.mktemp("real-cluster"), values) as started:
        yield started
