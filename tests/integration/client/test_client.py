"""Both clients against a real gRPC server whose answers are scripted."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from neox_serve.client import AsyncClient, Client, RetryPolicy, StreamChunk, StreamFinal, Usage
from neox_serve.core.errors import FieldViolation, Reason, ServeError, invalid
from neox_serve.core.types import Finish, FinishReason, Pool, Pooling, TokenLogprob
from neox_serve.v1 import ops_service_pb2
from tests.fakes.scripted_gateway import ScriptedGateway

T = TypeVar("T")
BUSY = ServeError(Reason.OVERLOADED, "busy", retry_after_s=0.01)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as scripted:
        yield scripted


@pytest.fixture(params=["sync", "async"])
async def call(request: Any, gateway: ScriptedGateway) -> AsyncIterator[Callable[..., Any]]:
    """`await call("method", ...)` calls that method of one client or the other."""
    if request.param == "async":
        async with AsyncClient(gateway.address) as client:
            yield lambda method, *args, **options: getattr(client, method)(*args, **options)
    else:
        with Client(gateway.address) as blocking:
            yield lambda method, *args, **options: asyncio.to_thread(getattr(blocking, method), *args, **options)


async def test_generate_one_prompt_returns_text_usage_and_timings(call: Any) -> None:
    result = await call("generate", "hello", n=2, request_id="mine")
    assert (result.text, result.request_id, result.model, result.seed) == ("HELLO", "mine", "scripted", 7)
    assert [completion.index for completion in result.results[0].completions] == [0, 1]
    assert result.results[0].completions[1].finish == Finish(FinishReason.STOP, "!")
    assert result.usage == Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, truncated_tokens=4)
    assert (result.timings.first_token_s, result.timings.total_s) == (0.03, 0.4)


async def test_generate_many_prompts_returns_them_in_order(call: Any) -> None:
    result = await call("generate", ["a", [98], "c"])
    assert result.texts == ("A", "B", "C")
    with pytest.raises(ValueError, match="too many"):
        _ = result.text


async def test_score_returns_one_score_per_item(call: Any) -> None:
    result = await call("score", [("abc", "de"), ("", "f")], truncation="keep_end", request_id="mine")
    assert [score.log_likelihood for score in result.scores] == [-3, 0]
    assert result.scores[0].tokens == (TokenLogprob(2, -0.5, 1, "de"),)
    assert (result.request_id, result.scores[1].is_greedy) == ("mine", True)


async def test_embed_returns_an_array(call: Any) -> None:
    result = await call("embed", ["abc", "de"])
    assert result.vectors.dtype == np.float32
    np.testing.assert_array_equal(result.vectors, [[3, 1], [2, 1]])
    assert result.prompt_tokens == (3, 2)
    assert result.timings.first_token_s is None


async def test_tokenize_and_detokenize_round_trip(call: Any) -> None:
    (tokenized,) = await call("tokenize", "hé", include_offsets=True)
    assert (tokenized.token_ids, tokenized.offsets) == ((104, 233), ((0, 1), (1, 2)))
    assert await call("detokenize", tokenized.token_ids) == ("hé",)
    assert await call("detokenize", [[104], [233]]) == ("h", "é")


async def test_models_have_capabilities_and_limits(call: Any) -> None:
    (model,) = await call("models")
    assert model == await call("model", "scripted")
    assert (model.capabilities, model.limits.max_model_len) == (frozenset({"generate", "embed"}), 2048)
    assert (model.embedding.default_pooling, model.ready_generation_replicas) == (Pooling.MEAN, 2)
    with pytest.raises(ServeError) as caught:
        await call("model", "other")
    assert caught.value.reason is Reason.UNKNOWN_MODEL


async def test_status_and_health_are_converted(call: Any, gateway: ScriptedGateway) -> None:
    gateway.status = ops_service_pb2.GetClusterStatusResponse(
        version="1",
        gateway_id="g",
        pools=[ops_service_pb2.PoolStatus(kind=ops_service_pb2.POOL_KIND_EMBEDDING, ready_replicas=1)],
        replicas=[
            ops_service_pb2.ReplicaStatus(
                replica_id="r", pool=ops_service_pb2.POOL_KIND_GENERATION, state=ops_service_pb2.REPLICA_STATE_DRAINING
            )
        ],
        gateways=[ops_service_pb2.GatewayStatus(gateway_id="g")],
        conditions=[ops_service_pb2.Condition(reason="ROUTER_DOWN", message="m")],
    )
    status = await call("status")
    assert (status.pools[0].pool, status.replicas[0].state, status.conditions[0].reason) == (Pool.EMBEDDING, "draining", "ROUTER_DOWN")
    assert await call("health") == "SERVING"


async def test_error_of_the_service_keeps_its_violations(call: Any, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", invalid("parameters.sampling.top_p", "must be in (0, 1], got 2"))
    with pytest.raises(ServeError) as caught:
        await call("generate", "hi", top_p=2)
    assert caught.value.violations == (FieldViolation("parameters.sampling.top_p", "must be in (0, 1], got 2"),)
    assert len(gateway.received) == 1


async def test_generate_while_overloaded_is_retried_with_the_same_request_id(call: Any, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", BUSY, BUSY)
    assert (await call("generate", "hi")).text == "HI"
    ids = [request.request_id for request in gateway.requests("Generate")]
    assert len(ids) == 3
    assert len(set(ids)) == 1


async def test_generate_always_overloaded_raises_the_last_error(call: Any, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", *[BUSY] * 5)
    with pytest.raises(ServeError) as caught:
        await call("generate", "hi")
    assert (caught.value.reason, caught.value.retry_after_s) == (Reason.OVERLOADED, 0.01)
    assert len(gateway.received) == 4


async def test_generate_with_a_retry_delay_beyond_its_timeout_fails_at_once(call: Any, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", ServeError(Reason.OVERLOADED, "busy", retry_after_s=20.0))
    began_s = time.monotonic()
    with pytest.raises(ServeError) as caught:
        await call("generate", "hi", timeout_s=5.0)
    assert caught.value.reason is Reason.OVERLOADED
    assert time.monotonic() - began_s < 4.0


async def test_generate_past_its_timeout_is_a_deadline_error(call: Any, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", gateway.hang)
    with pytest.raises(ServeError) as caught:
        await call("generate", "hi", timeout_s=1.0)
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_retry_sends_the_remaining_timeout(call: Any, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", ServeError(Reason.DRAINING, "going", retry_after_s=0.3))
    await call("generate", "hi", timeout_s=10.0)
    first, second = (received.time_left_s for received in gateway.received)
    assert first is not None
    assert second is not None
    assert second < first - 0.25


async def test_unreachable_server_is_named() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServeError) as caught:
        await asyncio.to_thread(client.generate, "hi", timeout_s=10)
    assert caught.value.metadata == {"unreachable": "127.0.0.1:1"}


async def test_metadata_is_sent_with_every_call(gateway: ScriptedGateway) -> None:
    async with AsyncClient(gateway.address, metadata={"authorization": "Bearer t"}) as client:
        await client.generate("hi")
        async with client.stream("hi") as events:
            [event async for event in events]
    assert [received.metadata["authorization"] for received in gateway.received] == ["Bearer t"] * 2


def both(first: ScriptedGateway, second: ScriptedGateway) -> str:
    """A gRPC target that resolves to two gateways."""
    return f"ipv4:{first.address},{second.address}"


async def test_calls_are_spread_over_all_addresses(gateway: ScriptedGateway) -> None:
    async with ScriptedGateway() as second, AsyncClient(both(gateway, second)) as client:
        async with asyncio.timeout(20):
            while not (gateway.received and second.received):
                await client.tokenize("a")


async def test_calls_with_health_checks_avoid_an_unhealthy_gateway(gateway: ScriptedGateway) -> None:
    gateway.serving = False
    async with ScriptedGateway() as second, AsyncClient(both(gateway, second), health_checked=True) as client:
        for _ in range(20):
            await client.tokenize("a", timeout_s=20)
    assert (len(gateway.received), len(second.received)) == (0, 20)


async def test_call_whose_gateway_dies_is_retried_on_the_other_if_the_policy_says_so(gateway: ScriptedGateway) -> None:
    policy = RetryPolicy(unreachable_delay_s=0.05)
    async with ScriptedGateway() as second, AsyncClient(both(gateway, second), retry=policy) as client:
        gateway.script("Generate", gateway.hang)
        second.script("Generate", second.hang)
        call = asyncio.create_task(client.generate("a", timeout_s=20))
        arrivals = [asyncio.create_task(each.wait_for_calls(1)) for each in (gateway, second)]
        _, waiting = await asyncio.wait(arrivals, return_when=asyncio.FIRST_COMPLETED)
        [task.cancel() for task in waiting]
        victim, survivor = (gateway, second) if gateway.received else (second, gateway)
        survivor.script_nothing("Generate")
        await victim.stop()
        assert (await call).text == "A"
        assert survivor.requests("Generate")[0].request_id == victim.requests("Generate")[0].request_id


async def read(client: Client | AsyncClient, prompt: str, **options: Any) -> list[Any]:
    """All events of a stream."""
    if isinstance(client, AsyncClient):
        async with client.stream(prompt, **options) as events:
            return [event async for event in events]
    blocking = client

    def all_events() -> list[Any]:
        with blocking.stream(prompt, **options) as events:
            return list(events)

    return await asyncio.to_thread(all_events)


@pytest.fixture(params=[Client, AsyncClient])
async def client(request: Any, gateway: ScriptedGateway) -> AsyncIterator[Client | AsyncClient]:
    chosen = request.param(gateway.address, retry=RetryPolicy(max_attempts=3))
    yield chosen
    await chosen.close() if isinstance(chosen, AsyncClient) else chosen.close()


async def test_stream_yields_chunks_and_then_one_final(client: Any) -> None:
    *chunks, final = await read(client, "a bc d", request_id="s-1")
    assert "".join(chunk.text for chunk in chunks) == "A BC D"
    assert all(isinstance(chunk, StreamChunk) for chunk in chunks)
    assert isinstance(final, StreamFinal)
    assert (final.request_id, final.finishes, final.usage.completion_tokens) == ("s-1", (Finish(FinishReason.LENGTH),), 2)


async def test_stream_options_reach_the_gateway(client: Any, gateway: ScriptedGateway) -> None:
    await read(client, "a b", min_chunk_interval_s=1.5, min_chunk_tokens=8)
    (request,) = gateway.requests("StreamGenerate")
    assert (request.options.min_chunk_interval.ToMilliseconds(), request.options.min_chunk_tokens) == (1500, 8)


async def test_stream_while_overloaded_is_retried_before_its_first_event(client: Any, gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", BUSY, BUSY)
    events = await read(client, "a b")
    assert "".join(event.text for event in events[:-1]) == "A B"
    assert len({request.request_id for request in gateway.requests("StreamGenerate")}) == 1


async def test_stream_that_fails_after_its_first_event_is_not_retried(client: Any, gateway: ScriptedGateway) -> None:
    async def lose_replica() -> None:
        raise RuntimeError("no final event")

    gateway.script("StreamGenerate", lose_replica)
    with pytest.raises(ServeError):
        await read(client, "a b")
    assert len(gateway.received) == 1


async def test_stream_left_early_cancels_the_call(client: Any, gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", gateway.hang)
    if isinstance(client, AsyncClient):
        async with client.stream("a b") as events:
            assert (await anext(events)).text == "A"  # type: ignore[union-attr]
        assert [event async for event in events] == []
    else:
        with client.stream("a b") as blocking:
            assert (await asyncio.to_thread(next, blocking)).text == "A"
        assert list(blocking) == []
    await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_stream_closed_by_another_task_ends_without_an_error(gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", gateway.hang)
    async with AsyncClient(gateway.address) as client:
        events = client.stream("a b")
        await anext(events)
        waiting = asyncio.create_task(collect(events))
        await asyncio.sleep(0.05)
        events.close()
        assert await asyncio.wait_for(waiting, 20) == []


async def test_stream_whose_task_is_cancelled_raises_and_cancels_the_call(gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", gateway.hang)
    async with AsyncClient(gateway.address) as client:
        events = client.stream("a b")
        await anext(events)
        waiting = asyncio.create_task(collect(events))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_stream_closed_by_another_thread_ends_without_an_error(gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", gateway.hang)
    with Client(gateway.address) as client:
        events = client.stream("a b")
        await asyncio.to_thread(next, events)
        waiting = asyncio.create_task(asyncio.to_thread(list, events))
        await asyncio.sleep(0.05)
        events.close()
        assert await asyncio.wait_for(waiting, 20) == []


async def collect(events: AsyncIterator[T]) -> list[T]:
    return [event async for event in events]
