"""Every call ends exactly once, with one status, one settlement and one usage record, whatever happens and in whatever order."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.call_life import Phase
from neox_serve.core.tenancy.usage import UsageRecord
from neox_serve.gateway.server.calls import Call, Method
from neox_serve.gateway.server.decoding import Decoder
from neox_serve.gateway.server.idempotency import Idempotency, IdempotencyCache
from neox_serve.gateway.server.identity import Identity
from neox_serve.gateway.server.metrics import GatewayMetrics
from neox_serve.gateway.server.runner import CallRunner
from neox_serve.settings import parse
from neox_serve.telemetry.tracing import Tracing
from neox_serve.transport.call import AbortError
from neox_serve.v1 import inference_service_pb2 as pb
from tests.fakes.scripted_dispatcher import ScriptedDispatcher

INTERRUPTION = ServeError(Reason.DRAINING, "shutting down")
UNARY_PATH = "/neox_serve.v1.InferenceService/Embed"


@dataclass(slots=True)
class FakeContext:
    """A call without a connection."""

    time_left_s: float = 60.0
    lost: bool = False
    statuses: list[grpc.StatusCode] = field(default_factory=list)
    unsent: bytes = b""

    def time_remaining(self) -> float:
        return self.time_left_s

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def certificate_names(self) -> tuple[str, ...]:
        return ()

    def cancelled(self) -> bool:
        return self.lost

    def set_trailing_metadata(self, _metadata: Any) -> None:
        self.statuses.append(grpc.StatusCode.OK)

    async def abort(self, code: grpc.StatusCode, _details: str = "", _metadata: Any = ()) -> None:
        self.statuses.append(code)
        raise AbortError(code.name)


@dataclass(slots=True)
class Handle:
    """A reservation that records its settlements."""

    settled: list[int] = field(default_factory=list)

    def settle(self, used_tokens: int) -> None:
        self.settled.append(used_tokens)


class Bench:
    """A runner, and everything that one call leaves behind."""

    def __init__(self) -> None:
        settings = parse({})
        self.usage: list[UsageRecord] = []
        self.metrics = GatewayMetrics(ScriptedDispatcher())
        self.handle = Handle()
        self.calls: list[Call] = []
        self.context = FakeContext()

        async def never_followed(*_arguments: Any) -> Any:
            for message in (b"no other gateway exists",):
                yield message

        self.runner = CallRunner(
            gateway_id="g",
            settings=settings.gateway,
            metrics=self.metrics,
            identity=Identity(anonymous_allowed=True, directory=None, tokens=None, clock=time.time),
            note_usage=self.usage.append,
            idempotency=Idempotency(IdempotencyCache(window_s=60, max_bytes=1000, clock=time.monotonic), never_followed),
            tracing=Tracing(settings.tracing, "gateway"),
        )

    def start(self, handler: Callable[[Call], Any]) -> "asyncio.Task[bytes]":
        """Starts a call whose handler reserves quota, uses three tokens and then does what the test says."""

        async def unary(call: Call, _message: pb.EmbedRequest) -> pb.EmbedResponse:
            self.calls.append(call)
            call.accounting.reservation = self.handle
            call.progress.admitted(0.1, "replica")
            call.accounting.tokens.prompt = 3
            await handler(call)
            return pb.EmbedResponse()

        method = Method("neox_serve.v1.InferenceService", "Embed", Decoder(pb.EmbedRequest, 1000), unary=unary, metered=True)
        assert method.path == UNARY_PATH
        context: Any = self.context
        return asyncio.ensure_future(self.runner.run(method, pb.EmbedRequest(request_id="one").SerializeToString(), context))

    def check_ended_once(self, phase: Phase, outcome: str, codes: list[grpc.StatusCode]) -> None:
        """Checks that nothing happened twice, and that nothing is left."""
        (call,) = self.calls
        assert call.progress.life.phase is phase
        assert self.context.statuses == codes
        assert self.handle.settled == [3]
        assert [(record.outcome, record.prompt_tokens) for record in self.usage] == [(outcome, 3)]
        assert f'neox_serve_gateway_calls_in_flight{{method="{UNARY_PATH}"}} 0.0' in self.metrics.text()
        assert self.runner.calls_in_flight == 0


async def wait_for_ever(_call: Call) -> None:
    await asyncio.Event().wait()


async def test_call_that_succeeds_ends_once() -> None:
    bench = Bench()
    await bench.start(lambda _call: asyncio.sleep(0))
    bench.check_ended_once(Phase.FINISHED, "OK", [grpc.StatusCode.OK])


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (ServeError(Reason.REPLICA_LOST, "lost"), "REPLICA_LOST", grpc.StatusCode.UNAVAILABLE),
        (KeyError("fault"), "INTERNAL", grpc.StatusCode.INTERNAL),
    ],
    ids=["error", "fault"],
)
async def test_call_that_fails_ends_once(error: Exception, outcome: str, code: grpc.StatusCode) -> None:
    bench = Bench()

    async def fail(_call: Call) -> None:
        raise error

    with pytest.raises(AbortError):
        await bench.start(fail)
    bench.check_ended_once(Phase.FAILED, outcome, [code])


async def test_call_past_its_deadline_ends_once() -> None:
    bench = Bench()
    bench.context.time_left_s = 0.01
    with pytest.raises(AbortError):
        await bench.start(wait_for_ever)
    bench.check_ended_once(Phase.FAILED, "DEADLINE_EXCEEDED", [grpc.StatusCode.DEADLINE_EXCEEDED])


async def test_call_of_a_lost_client_ends_once_and_sends_nothing() -> None:
    bench = Bench()
    task = bench.start(wait_for_ever)
    await asyncio.sleep(0.01)
    bench.context.lost = True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.check_ended_once(Phase.CANCELLED, "CANCELLED", [])


async def test_interrupted_call_ends_once_however_often_it_is_interrupted() -> None:
    bench = Bench()
    task = bench.start(wait_for_ever)
    await asyncio.sleep(0.01)
    bench.runner.interrupt_all(INTERRUPTION)
    bench.runner.interrupt_all(ServeError(Reason.UNAUTHENTICATED, "revoked"))
    with pytest.raises(AbortError):
        await task
    bench.runner.interrupt_all(INTERRUPTION)
    bench.check_ended_once(Phase.FAILED, "DRAINING", [grpc.StatusCode.UNAVAILABLE])


async def test_interruption_and_lost_client_at_once_end_the_call_once() -> None:
    bench = Bench()
    task = bench.start(wait_for_ever)
    await asyncio.sleep(0.01)
    bench.runner.interrupt_all(INTERRUPTION)
    bench.context.lost = True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.check_ended_once(Phase.CANCELLED, "CANCELLED", [])


async def test_repeat_of_a_completed_call_leaves_no_usage_and_no_second_settlement() -> None:
    bench = Bench()
    await bench.start(lambda _call: asyncio.sleep(0))
    await bench.start(wait_for_ever)
    assert len(bench.calls) == len(bench.usage) == len(bench.handle.settled) == 1
    assert bench.context.statuses == [grpc.StatusCode.OK] * 2
