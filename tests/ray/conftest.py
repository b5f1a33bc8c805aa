"""A cluster of fake engines that all tests of this folder share: real Ray, Serve and processes, but no model."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import CommandCluster, free_port, running_cluster


def fake_engine(**timing: float) -> dict[str, Any]:
    """Returns settings of a fake engine."""
    return {"kind": "fake", "fake": {"ttft_s": 0.02, "itl_s": 0.02, **timing}}


def fake_cluster_values() -> dict[str, Any]:
    """Returns settings of a small, fast cluster: two gateways, one or two generation replicas, one embedding replica."""
    return {
        "generation": {
            "engine": fake_engine(),
            "replicas": {"min": 1, "initial": 1, "max": 2},
        },
        "scaling": {
            "policy": "target-ongoing-requests",
            "target_ongoing_requests": 6,
            "look_back_period_s": 1,
            "upscale_delay_s": 0.5,
            "downscale_delay_s": 3,
            "interval_s": 0.3,
        },
        "embedding": {"engine": fake_engine()},
        "gateway": {"port": free_port(), "processes": 2},
        "metrics": {"port": free_port()},
        "ray": {"dashboard_port": free_port()},
    }


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandCluster]:
    """A running cluster of fake engines. Every test restores its original state."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, {**fake_cluster_values(), "model": {"registry": str(folder / "registry")}}) as started:
        yield started
