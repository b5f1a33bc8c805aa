"""OpenTelemetry spans of one process: a call's at the gateway, and below it the router's admission and each replica's work on it.

Contexts travel as W3C `traceparent` texts: from the client in metadata, to router and replicas in the link's messages. Without an endpoint
in the settings nothing is made and nothing travels.
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
    """Makes the spans of one component."""

    def __init__(self, settings: TracingSettings, component: str) -> None:
        self._provider = _provider(settings, component) if settings.endpoint else None
        self._tracer = self._provider.get_tracer("neox_serve") if self._provider else None

    def begin(self, name: str, parent: str, attributes: Mapping[str, Any], kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """A span below the one that a traceparent names, or the first of a new trace where it names none. It must be ended."""
        if self._tracer is None:
            return trace.INVALID_SPAN
        context = _PROPAGATOR.extract({TRACEPARENT: parent}) if parent else None
        span: Span = self._tracer.start_span(name, context, kind=kind, attributes=dict(attributes))
        return span

    def close(self) -> None:
        """Sends what has not been sent. Blocks."""
        if self._provider is not None:
            self._provider.force_flush(_CLOSING_MS)
            self._provider.shutdown()


def traceparent(span: Span) -> str:
    """The text that names a span to other processes; empty where there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(TRACEPARENT, "")


def end(span: Span, failure: str = "", **attributes: str | int | float | Sequence[str]) -> None:
    """Ends a span with what became of its work. failure: the reason; empty where all went well."""
    for name, value in attributes.items():
        span.set_attribute(f"neox.{name}", value)
    if failure:
        span.set_status(StatusCode.ERROR, failure)
    span.end()


def _provider(settings: TracingSettings, component: str) -> Any:
    """Imported here: nobody who does not trace waits for the SDK."""
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
