"""OpenTelemetry spans of one process. The gateway's span of a call has children: the router's admission and the work of each replica.

Contexts are passed on as W3C `traceparent` strings: by the client in metadata, and to router and replicas in the messages of the links.
Without an endpoint in the settings no spans are created and no contexts are passed on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neox_serve.settings.cluster import TracingSettings

TRACEPARENT = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()
_CLOSING_MS = 2_000


class Tracing:
    """Creates the spans of one component."""

    def __init__(self, settings: TracingSettings, component: str) -> None:
        self._provider = _provider(settings, component) if settings.endpoint else None
        self._tracer = self._provider.get_tracer("neox_serve") if self._provider else None

    def begin(self, name: str, parent: str, attributes: Mapping[str, Any], kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """Starts a span below the one that `parent` names, or the first span of a new trace if it is empty. It must be ended."""
        if self._tracer is None:
            return trace.INVALID_SPAN
        context = _PROPAGATOR.extract({TRACEPARENT: parent}) if parent else None
        span: Span = self._tracer.start_span(name, context, kind=kind, attributes=dict(attributes))
        return span

    def close(self) -> None:
        """Sends the remaining spans. Blocks."""
        if self._provider is not None:
            self._provider.force_flush(_CLOSING_MS)
            self._provider.shutdown()


def traceparent(span: Span) -> str:
    """Returns the traceparent of a span for other processes; empty if there is no span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(TRACEPARENT, "")


def end(span: Span, failure: str = "", **attributes: str | int | float | Sequence[str]) -> None:
    """Ends a span with attributes of the result. `failure` is the reason of a failure; empty if the work succeeded."""
    for name, value in attributes.items():
        span.set_attribute(f"neox.{name}", value)
    if failure:
        span.set_status(StatusCode.ERROR, failure)
    span.end()


def _provider(settings: TracingSettings, component: str) -> Any:
    """Returns a provider that exports spans. The SDK is imported here, so that processes without tracing do not load it."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"neox-serve-{component}"}),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_fraction)),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1_000))
    return provider
