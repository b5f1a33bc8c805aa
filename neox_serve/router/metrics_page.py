"""One Prometheus page for the whole cluster: the metrics of every process, each sample labelled with its process."""

from collections.abc import Callable, Iterable, Mapping
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)

Labels = tuple[tuple[str, str], ...]
"""Label names and values that identify a process."""


def merge(texts: Mapping[Labels, str]) -> list[Metric]:
    """Returns the metric families of all texts, with the labels of its text added to each sample.

    A text that does not parse is skipped and logged, and so is a family whose type differs between texts.
    """
    merged: dict[str, Metric] = {}
    for labels, text in texts.items():
        try:
            families = list(text_string_to_metric_families(text))
        except ValueError as error:
            _log.warning("metrics_unreadable", source=dict(labels), cause=str(error))
            continue
        for family in families:
            _add(merged, family, labels)
    return list(merged.values())


def _add(merged: dict[str, Metric], family: Metric, labels: Labels) -> None:
    target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    if target.type != family.type:
        _log.warning("metrics_disagree", family=family.name, types=[target.type, family.type])
        return
    for sample in family.samples:
        target.add_sample(sample.name, {**sample.labels, **dict(labels)}, sample.value)


class _Merged(Collector):
    """Merges the texts at each scrape."""

    def __init__(self, texts: Callable[[], Mapping[Labels, str]]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Returns the merged families."""
        return merge(self._texts())


class MetricsPage:
    """Serves the merged page over HTTP, from its own thread. texts: returns all texts; called in that thread at each scrape."""

    def __init__(self, *, host: str, port: int, texts: Callable[[], Mapping[Labels, str]]) -> None:
        self._host = host
        self._port = port
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Merged(texts))
        self._running: tuple[WSGIServer, Thread] | None = None
        self.address = ""
        """host:port of the page; empty until `start`."""

    def start(self) -> None:
        """Starts to listen. Raises OSError if the address cannot be bound."""
        self._running = start_http_server(self._port, self._host, self._registry)
        self.address = f"{self._host}:{self._running[0].server_port}"

    def stop(self) -> None:
        """Stops listening."""
        if self._running is not None:
            server, thread = self._running
            server.shutdown()
            server.server_close()
            thread.join()
            self._running = None


def text_of(registry: CollectorRegistry) -> str:
    """Returns a registry's metrics in Prometheus' text format."""
    text: Any = generate_latest(registry)
    return str(text, "utf-8")
