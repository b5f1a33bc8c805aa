"""One Prometheus page for the whole cluster: every process's own text, each sample labelled with the process it comes from."""

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


def merge(texts: Mapping[Labels, str]) -> list[Metric]:
    """The metric families of all texts, each sample with the labels of its text. A text that does not parse, or a family whose type differs
    from its namesake's, is left out and logged.
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
    def __init__(self, texts: Callable[[], Mapping[Labels, str]]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        return merge(self._texts())


class MetricsPage:
    """Serves the merged page over HTTP, from a thread of its own. texts: called at each scrape, from that thread."""

    def __init__(self, *, host: str, port: int, texts: Callable[[], Mapping[Labels, str]]) -> None:
        self._host = host
        self._port = port
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Merged(texts))
        self._running: tuple[WSGIServer, Thread] | None = None
        self.address = ""

    def start(self) -> None:
        """Listens. Raises OSError where it cannot."""
        self._running = start_http_server(self._port, self._host, self._registry)
        self.address = f"{self._host}:{self._running[0].server_port}"

    def stop(self) -> None:
        """Stops to listen."""
        if self._running is not None:
            server, thread = self._running
            server.shutdown()
            server.server_close()
            thread.join()
            self._running = None


def text_of(registry: CollectorRegistry) -> str:
    """A registry's metrics as text."""
    text: Any = generate_latest(registry)
    return str(text, "utf-8")
