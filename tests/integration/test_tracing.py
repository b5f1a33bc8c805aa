"""One trace through gateway, router and replica, as a collector gets it over OTLP."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from neox_serve.core.types import Pool
from neox_serve.engine.fake_engine import FakeEngine, FakeTiming
from neox_serve.link.dispatcher import Dispatcher
from neox_serve.link.replica_server import ReplicaServer
from neox_serve.link.router_server import RouterServer
from neox_serve.settings import MetricsSettings, RouterSettings, TracingSettings
from neox_serve.tracing import Tracing
from neox_serve.v1 import generation_pb2, inference_service_pb2
from tests.fakes.gateways import connected, running_gateway
from tests.fakes.link_cluster import MODEL, until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


class Collector:
    """Takes spans over HTTP. spans: name, trace id, span id, parent's span id, attributes."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str, str, dict[str, Any]]] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
                    self.spans.append((span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), values))


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


async def test_call_is_one_trace_from_the_clients_span_down_to_the_replica(collector: tuple[Collector, TracingSettings]) -> None:
    found, settings = collector
    engine = FakeEngine(FakeTiming(ttft_s=0.001, itl_s=0.001))
    router = RouterServer(settings=RouterSettings(peer_grace_s=0.1), metrics=MetricsSettings(port=0), tracing=Tracing(settings, "router"))
    await router.start()

    async def resolve() -> str:
        return router.address

    replica = ReplicaServer(
        engine=engine,
        pool=Pool.GENERATION,
        model=MODEL,
        host="127.0.0.1",
        max_requests=8,
        resolve_router=resolve,
        load_interval_s=0.05,
        tracing=Tracing(settings, "engine"),
    )
    await replica.start()
    dispatcher = Dispatcher(gateway_id="g", resolve_router=resolve, metrics_text=lambda: "")
    await dispatcher.start()
    await until(lambda: dispatcher.ready_replicas(Pool.GENERATION))
    sections: dict[str, Any] = {"model": {"name": MODEL}, "tracing": settings.model_dump()}
    async with running_gateway(dispatcher, **sections) as server, connected(server.port) as stubs:
        prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5, 6]))
        parameters = generation_pb2.GenerationParameters(stopping=generation_pb2.Stopping(max_tokens=3))
        request = inference_service_pb2.StreamGenerateRequest(request_id="mine", prompt=prompt, parameters=parameters)
        async for _ in stubs.inference.StreamGenerate(request, metadata=(("traceparent", PARENT),)):
            pass
        bad = inference_service_pb2.StreamGenerateRequest()
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stubs.inference.StreamGenerate(bad, metadata=(("traceparent", PARENT),)):
                pass
    await dispatcher.close()
    await replica.stop()
    await router.stop()
    await engine.close()
    async with asyncio.timeout(10):
        while len(found.spans) < 4:  # noqa: ASYNC110 - the collector's thread fills it
            await asyncio.sleep(0.02)
    assert {trace_id for _, trace_id, *_ in found.spans} == {TRACE_ID}
    calls = [span for span in found.spans if span[0].endswith("/StreamGenerate")]
    (call,) = [span for span in calls if span[4].get("neox.request_id") == "mine"]
    assert call[3] == "b7ad6b7169203331"
    assert (call[4]["neox.tenant"], call[4]["neox.completion_tokens"], call[4]["neox.replica_id"]) == ("anonymous", 3, replica.replica_id)
    below = {span[0]: span for span in found.spans if span[3] == call[2]}
    assert set(below) == {"router.admit", "engine.generate"}
    assert below["router.admit"][4]["neox.replica_id"] == replica.replica_id
    assert below["engine.generate"][4]["neox.request_id"] == "mine"


async def test_without_an_endpoint_nothing_is_made_and_nothing_travels() -> None:
    silent = Tracing(TracingSettings(), "gateway")
    span = silent.begin("call", PARENT, {})
    assert not span.get_span_context().is_valid
    silent.close()
