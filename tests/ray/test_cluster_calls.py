"""A cluster serves every kind of client."""

import asyncio
import urllib.request

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from neox_serve.client import AsyncClient, Client
from tests.clusters import CommandCluster
from tests.streams import until

pytestmark = pytest.mark.ray


def test_sync_client_generates_embeds_and_tokenizes(cluster: CommandCluster) -> None:
    with Client(cluster.address) as client:
        (tokens,) = client.tokenize("def fibonacci(n):")
        assert client.detokenize(tokens.token_ids) == ("def fibonacci(n):",)
        result = client.generate(["one", "two"], max_tokens=4, ignore_eos=True)
        assert [len(prompt.completions[0].token_ids) for prompt in result.results] == [4, 4]
        assert client.embed(["some text", "other text"]).vectors.shape == (2, client.models()[0].embedding.dimensions)  # type: ignore[union-attr]


async def test_streamed_text_joined_equals_the_unary_text(cluster: CommandCluster) -> None:
    async with AsyncClient(cluster.address) as client:
        unary = await client.generate("the same", max_tokens=20, ignore_eos=True, temperature=0.0)
        events = [event async for event in client.stream("the same", max_tokens=20, ignore_eos=True, temperature=0.0)]
        assert "".join(event.text for event in events[:-1]) == unary.text  # type: ignore[union-attr]


def test_reflection_describes_the_services(cluster: CommandCluster) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "neox_serve.v1.InferenceService" in database.get_services()
        service = DescriptorPool(database).FindServiceByName("neox_serve.v1.TokenService")
        assert [method.name for method in service.methods] == ["Tokenize", "Detokenize"]


def test_health_of_every_service_is_serving(cluster: CommandCluster) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs do not know it
        for service in ("", "neox_serve.v1.InferenceService", "neox_serve.v1.TokenService", "neox_serve.v1.ModelService"):
            assert check(health_pb2.HealthCheckRequest(service=service), timeout=5).status == health_pb2.HealthCheckResponse.SERVING


async def test_metrics_page_has_gateways_router_and_engines(cluster: CommandCluster) -> None:
    url = cluster.running.metrics_url
    assert url is not None

    async def page_is_complete() -> bool:
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())).decode()
        labels = ('component="gateway"', 'component="router"', 'pool="generation"', 'pool="embedding"')
        return all(label in text for label in labels)

    await until(page_is_complete, 15, "every component on the metrics page")
