"""The public calls over a real port, with an engine that answers by script."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool
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
async def stubs(dispatcher: ScriptedDispatcher) -> AsyncIterator[Stubs]:
    async with running_gateway(dispatcher) as server, connected(server.port) as stubs:
        yield stubs


def stream_request(**parameters: object) -> inference_service_pb2.StreamGenerateRequest:
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5]))
    return inference_service_pb2.StreamGenerateRequest(prompt=prompt, parameters=generation_pb2.GenerationParameters(**parameters))  # type: ignore[arg-type]


async def test_generate_of_two_prompts_answers_both_in_order_with_usage(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
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


async def test_stream_chunks_then_exactly_one_final(stubs: Stubs) -> None:
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


async def test_embed_gives_a_vector_an_input(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
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


async def test_models_lists_what_is_served(stubs: Stubs) -> None:
    (model,) = (await stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert (model.name, model.source, model.limits.context_tokens) == ("neox-small", "builtin", 2048)
    assert model_service_pb2.CAPABILITY_EMBED in model.capabilities
    assert (await stubs.models.GetModel(model_service_pb2.GetModelRequest(name="neox-small"))).model == model
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.models.GetModel(model_service_pb2.GetModelRequest())
    assert from_rpc_error(caught.value).reason is Reason.UNKNOWN_MODEL


async def test_cluster_status_says_that_the_router_is_down(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.router_connected = False
    dispatcher.ready[Pool.EMBEDDING] = 0
    status = await stubs.ops.GetClusterStatus(ops_service_pb2.GetClusterStatusRequest())
    assert [condition.reason for condition in status.conditions] == ["ROUTER_DOWN", "NO_READY_REPLICA"]
    assert status.gateway_id == GATEWAY_ID


async def test_first_failing_prompt_ends_the_call_and_frees_the_others(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    lost = ServeError(Reason.REPLICA_LOST, "replica r1 is gone", retry_after_s=0.25)
    dispatcher.scripts = {5: Script(silent=True), 6: Script(failure=lost, fails_at=1)}
    prompts = [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[first])) for first in (5, 6)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.inference.Generate(inference_service_pb2.GenerateRequest(prompts=prompts), timeout=5)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.retry_after_s) == (Reason.REPLICA_LOST, 0.25)
    await asyncio.sleep(0)
    assert not dispatcher.live


IDS = list(range(2, 2102))  # 52 beyond the context


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [(generation_pb2.TRUNCATION_KEEP_END, IDS[-2040:]), (generation_pb2.TRUNCATION_KEEP_START, IDS[:2040])],
    ids=["end", "start"],
)
async def test_long_prompt_is_truncated_on_request_and_the_loss_is_counted(
    truncation: generation_pb2.Truncation.ValueType, kept: list[int], stubs: Stubs, dispatcher: ScriptedDispatcher
) -> None:
    long = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=IDS))
    request = stream_request(truncation=truncation, stopping=generation_pb2.Stopping(max_tokens=8))
    request.prompt.CopyFrom(long)
    final = [event async for event in stubs.inference.StreamGenerate(request)][-1].final
    assert list(dispatcher.opened[0].prompt_token_ids) == kept
    assert (final.usage.prompt_tokens, final.usage.truncated_tokens) == (2040, 60)
    await stubs.inference.Embed(inference_service_pb2.EmbedRequest(inputs=[long], truncation=truncation))
    assert len(dispatcher.embedded[0].prompt_token_ids) == 2048
    assert set(kept) <= set(dispatcher.embedded[0].prompt_token_ids)


async def test_adapter_of_a_request_reaches_the_engine_and_is_listed() -> None:
    dispatcher = ScriptedDispatcher()
    adapters = [{"name": "loud", "path": "/nowhere"}]
    async with running_gateway(dispatcher, model={"adapters": adapters}) as server, connected(server.port) as stubs:
        request = stream_request()
        request.adapter = "loud"
        assert [event async for event in stubs.inference.StreamGenerate(request)]
        assert dispatcher.opened[0].adapter == "loud"
        (model,) = (await stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
        assert list(model.adapters) == ["loud"]


async def test_timings_say_where_the_time_went(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(tokens=2, admission_s=0.05)
    request = inference_service_pb2.GenerateRequest(prompts=[generation_pb2.Prompt(text="some text")])
    timings = (await stubs.inference.Generate(request)).timings
    assert timings.tokenization.ToNanoseconds() > 0
    assert timings.admission.ToNanoseconds() >= 45_000_000
    assert timings.admission.ToNanoseconds() < timings.first_token.ToNanoseconds() <= timings.total.ToNanoseconds()
