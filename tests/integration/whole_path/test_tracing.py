"""One trace through gateway, router and replica, as a collector receives it over OTLP."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from neox_serve.core.types import Pool
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.replica.server import ReplicaServer
from neox_serve.router.server import RouterServer
from neox_serve.settings.cluster import MetricsSettings, RouterSettings, TracingSettings
from neox_serve.telemetry.tracing import Tracing
from neox_serve.v1 import generation_pb2, inference_service_pb2
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import MODEL, until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


class Span(NamedTuple):
    """A received span. Ids are in hexadecimal."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    facts: dict[str, Any]


class Collector:
    """Receives spans over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
                    self.spans.append(Span(span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), values))


@pytest.fixture
def collector() -> Iterator[tuple[Collector, TracingSettings]]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            found.take(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found, TracingSettings(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces")
    server.shutdown()
    server.server_close()


@asynccontextmanager
async def traced_gateway(settings: TracingSettings, pool: Pool) -> AsyncIterator[tuple[Stubs, str]]:
    """Runs a gateway, a router and a replica that export spans, and yields the replica id. All spans are exported at the end."""
    engine = FakeEngine(FakeTiming(ttft_s=0.001, itl_s=0.001))
    router = RouterServer(settings=RouterSettings(peer_grace_s=0.1), metrics=MetricsSettings(port=0), tracing=Tracing(settings, "router"))
    await router.start()

    async def resolve() -> str:
        return router.address

    replica = ReplicaServer(
        engine=engine,
        pool=pool,
        model=MODEL,
        host="127.0.0.1",
        max_requests=8,
        resolve_router=resolve,
        load_interval_s=0.05,
        tracing=Tracing(settings, "engine"),
    )
    await replica.start()
    dispatcher = LinkDispatcher(gateway_id="g", resolve_router=resolve, metrics_text=lambda: "")
    await dispatcher.start()
    await until(lambda: dispatcher.ready_replicas(pool))
    sections: dict[str, Any] = {"model": {"name": MODEL}, "tracing": settings.model_dump()}
    async with running_gateway(dispatcher, **sections) as server, connected(server.port) as stubs:
        yield stubs, replica.replica_id
    await dispatcher.close()
    await replica.stop()
    await router.stop()
    await engine.close()


async def spans_of(found: Collector, count: int) -> list[Span]:
    """Returns all spans once there are this many, and checks that they belong to the client's trace."""
    async with asyncio.timeout(10):
        while len(found.spans) < count:  # noqa: ASYNC110 - filled by the collector's thread
            await asyncio.sleep(0.02)
    assert {span.trace_id for span in found.spans} == {TRACE_ID}
    return found.spans


async def test_call_is_one_trace_from_the_clients_span_down_to_the_replica(collector: tuple[Collector, TracingSettings]) -> None:
    found, settings = collector
    async with traced_gateway(settings, Pool.GENERATION) as (stubs, replica_id):
        prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5, 6]))
        parameters = generation_pb2.GenerationParameters(stopping=generation_pb2.Stopping(max_tokens=3))
        request = inference_service_pb2.StreamGenerateRequest(request_id="mine", prompt=prompt, parameters=parameters)
        async for _ in stubs.inference.StreamGenerate(request, metadata=(("traceparent", PARENT),)):
            pass
        bad = inference_service_pb2.StreamGenerateRequest()
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stubs.inference.StreamGenerate(bad, metadata=(("traceparent", PARENT),)):
                pass
    spans = await spans_of(found, 4)
    (call,) = [span for span in spans if span.name.endswith("/StreamGenerate") and span.facts.get("neox.request_id") == "mine"]
    assert call.parent_id == "b7ad6b7169203331"
    assert (call.facts["neox.tenant"], call.facts["neox.completion_tokens"], call.facts["neox.replica_id"]) == ("anonymous", 3, replica_id)
    below = {span.name: span for span in spans if span.parent_id == call.span_id}
    assert set(below) == {"router.admit", "engine.generate"}
    assert below["router.admit"].facts["neox.replica_id"] == replica_id
    assert below["engine.generate"].facts["neox.request_id"] == "mine"


async def test_embedding_call_has_a_span_of_router_and_replica_for_each_input(collector: tuple[Collector, TracingSettings]) -> None:
    found, settings = collector
    async with traced_gateway(settings, Pool.EMBEDDING) as (stubs, _):
        inputs = [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids)) for ids in ([5, 6], [7, 8, 9])]
        request = inference_service_pb2.EmbedRequest(request_id="mine", inputs=inputs)
        await stubs.inference.Embed(request, metadata=(("traceparent", PARENT),))
    spans = await spans_of(found, 5)
    (call,) = [span for span in spans if span.name.endswith("/Embed")]
    below = [span for span in spans if span.parent_id == call.span_id]
    assert sorted(span.name for span in below) == ["engine.embed"] * 2 + ["router.admit"] * 2
    engine = sorted((span.facts["neox.request_id"], span.facts["neox.prompt_tokens"]) for span in below if span.name == "engine.embed")
    assert engine == [("mine#0", 2), ("mine#1", 3)]


async def test_without_an_endpoint_nothing_is_made_and_nothing_travels() -> None:
    silent = Tracing(TracingSettings(), "gateway")
    span = silent.begin("call", PARENT, {})
    assert not span.get_span_context().is_valid
    silent.close()
