"""The public calls over a real port, with a scripted engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from neox_serve.client import AsyncClient
from neox_serve.client.results import EmbeddingFacts
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool, Pooling
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.v1 import (
    generation_pb2,
    inference_service_pb2,
    model_service_pb2,
    ops_service_pb2,
    token_service_pb2,
)
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import GATEWAY_ID, Stubs, builtin_tokenizer, connected, running_gateway
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher()


@pytest.fixture
async def server(dispatcher: ScriptedDispatcher) -> AsyncIterator[GatewayServer]:
    async with running_gateway(dispatcher) as server:
        yield server


@pytest.fixture
async def stubs(server: GatewayServer) -> AsyncIterator[Stubs]:
    async with connected(server.port) as stubs:
        yield stubs


def stream_request(**parameters: object) -> inference_service_pb2.StreamGenerateRequest:
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5]))
    return inference_service_pb2.StreamGenerateRequest(prompt=prompt, parameters=generation_pb2.GenerationParameters(**parameters))  # type: ignore[arg-type]


async def test_generate_two_prompts_returns_both_in_order_with_usage(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.scripts = {5: Script(tokens=2, text="slow", first_s=0.05), 6: Script(tokens=3, text="b")}
    request = inference_service_pb2.GenerateRequest(
        prompts=[generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[first])) for first in (5, 6)],
        parameters=generation_pb2.GenerationParameters(sampling=generation_pb2.Sampling(seed=7)),
    )
    call = stubs.inference.Generate(request)
    response = await call
    assert [result.completions[0].text for result in response.results] == ["slowslow", "bbb"]
    assert response.seed == 7
    assert response.model == "neox-small"
    usage = response.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (2, 2, 5)
    assert response.results[1].completions[0].finish.reason == generation_pb2.FINISH_REASON_STOP
    assert 0 < response.timings.first_token.ToNanoseconds() <= response.timings.total.ToNanoseconds()
    assert not dispatcher.live


async def test_stream_sends_chunks_then_exactly_one_final_event(stubs: Stubs) -> None:
    events = [event async for event in stubs.inference.StreamGenerate(stream_request(n=2))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds.count("final") == 1
    assert kinds[-1] == "final"
    texts = {index: "".join(e.chunk.text for e in events[:-1] if e.chunk.index == index) for index in (0, 1)}
    assert texts == {0: " x x x", 1: " x x x"}
    final = events[-1].final
    assert [finish.index for finish in final.finishes] == [0, 1]
    assert final.usage.completion_tokens == 6
    assert not final.HasField("seed")


async def test_every_call_returns_request_id_and_gateway_in_trailing_metadata(stubs: Stubs) -> None:
    request = stream_request()
    request.request_id = "mine-1"
    call = stubs.inference.StreamGenerate(request)
    final = [event async for event in call][-1].final
    trailing = dict(await call.trailing_metadata())
    assert (trailing["neox-request-id"], trailing["neox-gateway"], final.request_id) == ("mine-1", GATEWAY_ID, "mine-1")
    unnamed = stubs.tokens.Tokenize(token_service_pb2.TokenizeRequest(texts=["a"]))
    made = dict(await unnamed.trailing_metadata())["neox-request-id"]
    assert (await unnamed).request_id == made


async def test_embed_returns_one_vector_for_each_input(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    request = inference_service_pb2.EmbedRequest(inputs=[generation_pb2.Prompt(text=text) for text in ("one", "two words")])
    response = await stubs.inference.Embed(request)
    assert [list(embedding.values) for embedding in response.embeddings] == [pytest.approx([0.6, 0.8])] * 2
    assert response.usage.prompt_tokens == sum(embedding.prompt_tokens for embedding in response.embeddings)
    assert [one.normalize for one in dispatcher.embedded] == [True, True]


async def test_tokenize_and_detokenize_are_inverse(stubs: Stubs) -> None:
    texts = ["def f(x):\n    return x", "", "größe 漢字 🎉"]
    tokenized = await stubs.tokens.Tokenize(token_service_pb2.TokenizeRequest(texts=texts, include_offsets=True))
    assert [tuple(result.token_ids) for result in tokenized.results] == [builtin_tokenizer().encode(text) for text in texts]
    assert all(len(result.offsets) == len(result.token_ids) for result in tokenized.results)
    sequences = [generation_pb2.TokenIds(ids=result.token_ids) for result in tokenized.results]
    back = await stubs.tokens.Detokenize(token_service_pb2.DetokenizeRequest(sequences=sequences))
    assert list(back.texts) == texts


async def test_client_with_only_reflection_can_call(server: GatewayServer) -> None:
    def tokenize() -> list[list[int]]:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            reflected = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            method = reflected.FindServiceByName("neox_serve.v1.TokenService").FindMethodByName("Tokenize")
            request_type, response_type = (GetMessageClass(one) for one in (method.input_type, method.output_type))
            call: Any = channel.unary_unary(
                f"/{method.containing_service.full_name}/{method.name}", request_type.SerializeToString, response_type.FromString
            )
            request: Any = request_type(texts=["import os", "größe"])
            return [list(result.token_ids) for result in call(request, timeout=10).results]

    token_ids = await asyncio.to_thread(tokenize)
    assert token_ids == [list(builtin_tokenizer().encode(text)) for text in ("import os", "größe")]


SERVED = """
name: "served-name" source: "builtin" revision: "v2"
capabilities: [CAPABILITY_GENERATE, CAPABILITY_STRUCTURED_OUTPUT, CAPABILITY_BEAM_SEARCH, CAPABILITY_EMBED, CAPABILITY_ADAPTERS]
limits {
  max_model_len: 1024 vocabulary_size: 4096 prompts_per_request: 5 n: 6 beam_width: 7 logprobs: 8 stop_sequences: 16 request_bytes: 9000
}
adapters: ["legal", "medical"]
embedding { dimensions: 256 default_pooling: POOLING_LAST layer: 4 final_layer_norm: false }
ready_generation_replicas: 3 ready_embedding_replicas: 2
"""


async def test_model_message_has_every_field(dispatcher: ScriptedDispatcher) -> None:
    dispatcher.ready.update({Pool.GENERATION: 3, Pool.EMBEDDING: 2})
    sections: dict[str, Any] = {
        "model": {"name": "served-name", "revision": "v2", "adapters": [{"name": name, "path": name} for name in ("legal", "medical")]},
        "limits": {"prompts_per_request": 5, "n": 6, "beam_width": 7, "logprobs": 8, "request_bytes": 9000},
        "generation": {"engine": {"max_model_len": 1024}},
        "embedding": {"default_pooling": "last", "layer": 4},
    }
    async with running_gateway(dispatcher, **sections) as server, connected(server.port) as stubs:
        (model,) = (await stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert model == text_format.Parse(SERVED, model_service_pb2.Model())


async def test_model_without_embeddings_and_adapters_lists_neither(dispatcher: ScriptedDispatcher) -> None:
    async with running_gateway(dispatcher, embedding={"enabled": False}) as server, connected(server.port) as stubs:
        (model,) = (await stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert not {model_service_pb2.CAPABILITY_EMBED, model_service_pb2.CAPABILITY_ADAPTERS} & {*model.capabilities}
    assert not model.HasField("embedding")
    assert (model.revision, list(model.adapters)) == ("", [])


async def test_get_model_requires_the_exact_name(stubs: Stubs) -> None:
    (model,) = (await stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert (await stubs.models.GetModel(model_service_pb2.GetModelRequest(name="neox-small"))).model == model
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.models.GetModel(model_service_pb2.GetModelRequest())
    assert from_rpc_error(caught.value).reason is Reason.UNKNOWN_MODEL


async def test_cluster_status_reports_that_the_router_is_down(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.router_connected = False
    dispatcher.ready[Pool.EMBEDDING] = 0
    status = await stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
    assert [condition.reason for condition in status.conditions] == ["ROUTER_DOWN", "NO_READY_REPLICA"]
    assert status.gateway_id == GATEWAY_ID


async def test_first_failing_prompt_fails_the_call_and_frees_the_others(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    lost = ServeError(Reason.REPLICA_LOST, "replica r1 is gone", retry_after_s=0.25)
    dispatcher.scripts = {5: Script(silent=True), 6: Script(failure=lost, fails_at=1)}
    prompts = [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[first])) for first in (5, 6)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.inference.Generate(inference_service_pb2.GenerateRequest(prompts=prompts), timeout=5)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.retry_after_s) == (Reason.REPLICA_LOST, 0.25)
    await asyncio.sleep(0)
    assert not dispatcher.live


async def test_embed_returns_its_layer_and_refuses_another(dispatcher: ScriptedDispatcher) -> None:
    async with running_gateway(dispatcher, embedding={"layer": 4}) as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
        async with connected(server.port) as stubs:
            request = inference_service_pb2.EmbedRequest(inputs=[generation_pb2.Prompt(text="a")], layer=4)
            assert (await stubs.inference.Embed(request)).layer == 4
        with pytest.raises(ServeError) as caught:
            await client.embed("a", layer=3)
        assert [violation.field for violation in caught.value.violations] == ["layer"]
        assert (await client.models())[0].embedding == EmbeddingFacts(256, Pooling.MEAN, 4, final_layer_norm=False)
