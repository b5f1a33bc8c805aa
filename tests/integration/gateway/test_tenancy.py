"""Quotas and priority classes in the gateway: reservations, refusals, terms and estimates."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from neox_serve.client import AsyncClient
from neox_serve.core.errors import QuotaViolation, Reason, ServeError
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import ANONYMOUS, PriorityClass
from neox_serve.gateway.handlers.estimation import quota_left
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.v1 import generation_pb2, inference_service_pb2
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import until
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher

REFUSAL = ServeError(
    Reason.QUOTA_EXCEEDED,
    "quota used up: tokens_per_minute",
    {"quotas": "tokens_per_minute"},
    7.5,
    quota_violations=(QuotaViolation("tenant:a", "x"),),
)


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher()


@pytest.fixture
async def server(dispatcher: ScriptedDispatcher) -> AsyncIterator[GatewayServer]:
    async with running_gateway(dispatcher) as server:
        yield server


@pytest.fixture
async def client(server: GatewayServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        yield client


@pytest.fixture
async def stubs(server: GatewayServer) -> AsyncIterator[Stubs]:
    async with connected(server.port) as stubs:
        yield stubs


def prompt(*ids: int) -> generation_pb2.Prompt:
    return generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids))


@pytest.mark.parametrize("streamed", [False, True])
async def test_call_reserves_its_maximum_and_settles_what_it_used(
    client: AsyncClient, dispatcher: ScriptedDispatcher, streamed: bool
) -> None:
    dispatcher.script = Script(tokens=4)
    if streamed:
        async for _ in client.stream([1, 2, 3], max_tokens=50, n=2):
            pass
    else:
        await client.generate([1, 2, 3], max_tokens=50, n=2)
    (held,) = dispatcher.reserved
    assert (held.tenant, held.tokens, held.used_tokens) == (ANONYMOUS, 3 + 2 * 50, 3 + 2 * 4)


async def test_prompts_of_one_call_are_reserved_as_one(client: AsyncClient, dispatcher: ScriptedDispatcher) -> None:
    await client.generate([[1, 2], [3]], max_tokens=10)
    assert [held.tokens for held in dispatcher.reserved] == [2 + 1 + 2 * 10]
    await client.embed([[1, 2], [3]])
    assert [(held.tokens, held.used_tokens) for held in dispatcher.reserved[1:]] == [(3, 3)]


async def test_beams_are_reserved_by_their_width(client: AsyncClient, dispatcher: ScriptedDispatcher) -> None:
    await client.generate([1], max_tokens=10, beam_width=4)
    assert dispatcher.reserved[0].tokens == 1 + 4 * 10


async def test_cancelled_or_failed_call_settles_the_tokens_so_far(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(tokens=None, interval_s=0.01)
    call = stubs.inference.StreamGenerate(inference_service_pb2.StreamGenerateRequest(prompt=prompt(1, 2)))
    stream = aiter(call)
    for _ in range(3):
        await anext(stream)
    call.cancel()
    await until(lambda: dispatcher.reserved[0].used_tokens is not None)
    assert (dispatcher.reserved[0].used_tokens or 0) >= 2 + 3
    dispatcher.script = Script(failure=ServeError(Reason.ENGINE_FAILED, "broken"), fails_at=2)
    with pytest.raises(grpc.aio.AioRpcError):
        await stubs.inference.Generate(inference_service_pb2.GenerateRequest(prompts=[prompt(1)]))
    assert dispatcher.reserved[1].used_tokens == 1 + 2


async def test_call_without_a_replica_uses_nothing(client: AsyncClient, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(refusal=ServeError(Reason.UNKNOWN_MODEL, "none"))
    with pytest.raises(ServeError):
        await client.generate([1, 2])
    assert dispatcher.reserved[0].used_tokens == 0


async def test_quota_refusal_reaches_the_client_with_quota_failure_and_retry_info(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.quota_refusal = REFUSAL
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.inference.Generate(inference_service_pb2.GenerateRequest(prompts=[prompt(1)]))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    found = {detail.type_url.rsplit(".", 1)[1]: detail for detail in status.details}
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert found["QuotaFailure"].Unpack(failure)
    assert found["RetryInfo"].Unpack(retry)
    assert [(one.subject, one.description) for one in failure.violations] == [("tenant:a", "x")]
    assert retry.retry_delay.ToMilliseconds() == 7_500
    assert dispatcher.opened == []


async def test_terms_hold_tenant_and_urgency_of_the_request(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    request = inference_service_pb2.GenerateRequest(prompts=[prompt(1)], priority=generation_pb2.PRIORITY_CLASS_BULK)
    await stubs.inference.Generate(request, timeout=30)
    (terms,) = dispatcher.terms
    assert (terms.tenant, terms.priority) == (ANONYMOUS, PriorityClass.BULK)
    assert 20 < terms.time_left_s < 31


async def test_estimate_returns_the_cost_without_running(client: AsyncClient, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.estimated = (1.5, QuotaState(1, 2, 3, 4, 5))
    found = await client.estimate([1, 2, 3], max_tokens=10, n=2)
    assert (found.prompt_tokens, found.max_completion_tokens, found.cost) == (3, 20, 3 + 2 * 20)
    assert (found.expected_wait_s, found.quota_left, found.fits_quota) == (1.5, {}, True)
    dispatcher.estimated = (None, QuotaState(1, 2, 3, 4, 5))
    assert (await client.estimate([1])).expected_wait_s is None
    assert not dispatcher.opened
    assert not dispatcher.reserved
    with pytest.raises(ServeError) as caught:
        await client.estimate([1], temperature=9.0)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_quota_left_counts_reservations_and_is_never_negative() -> None:
    from neox_serve.core.tenancy.tenants import Quotas

    left = quota_left(Quotas(tokens_per_minute=100, tokens_per_day=5, concurrent_requests=4), QuotaState(1, 20, 30, 3, 40))
    assert {field.name: value for field, value in left.ListFields()} == {
        "tokens_this_minute": 40,
        "tokens_today": 0,
        "concurrent_requests": 1,
    }
