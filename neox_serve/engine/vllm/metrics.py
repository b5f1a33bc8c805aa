"""vLLM's Prometheus metrics as text."""

from collections.abc import Iterable

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_PREFIX = "vllm:"


class _VllmMetrics(Collector):
    """The part of the process's registry that vLLM registered."""

    def collect(self) -> Iterable[Metric]:
        return [metric for metric in REGISTRY.collect() if metric.name.startswith(_PREFIX)]


def text() -> str:
    """Returns all of them in Prometheus' text format."""
    return generate_latest(_VllmMetrics()).decode("utf-8")
