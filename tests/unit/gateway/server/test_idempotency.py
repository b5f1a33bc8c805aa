"""Idempotent requests: one execution and one response for a key, whoever owns it and however the owner ends."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from neox_serve.core.errors import OwnedElsewhere, Reason, ServeError
from neox_serve.gateway.server.calls import Call, CallIdentity
from neox_serve.gateway.server.deadlines import Deadline
from neox_serve.gateway.server.idempotency import (
    Idempotency,
    IdempotencyCache,
    IdempotencyKey,
    IdempotentRequest,
    SharedResponse,
    UnknownCallError,
)

KEY = IdempotencyKey("acme", "/service/Method", "one")
DIGEST = b"digest"
LOST = ServeError(Reason.REPLICA_LOST, "lost")


@dataclass(slots=True)
class FakeWriter:
    """Collects what a client of a stream receives."""

    written: list[bytes] = field(default_factory=list)

    async def write(self, message: bytes) -> None:
        self.written.append(message)


@dataclass(slots=True)
class Owner:
    """Another gateway, which sends `messages` and then ends in success, with `failure`, or without knowing the call."""

    messages: list[bytes] = field(default_factory=list)
    failure: Exception | None = None
    followed: int = 0
    proceed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, _address: str, _key: IdempotencyKey, _digest: bytes) -> AsyncGenerator[bytes, None]:
        self.followed += 1
        for message in self.messages:
            yield message
        await self.proceed.wait()
        if self.failure is not None:
            raise self.failure


@dataclass(slots=True)
class Bench:
    """An idempotency layer, and everything that its calls do."""

    owner: Owner = field(default_factory=Owner)
    now_s: float = 0.0
    cache: IdempotencyCache = field(init=False)
    layer: Idempotency = field(init=False)
    executed: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner.proceed.set()
        self.cache = IdempotencyCache(window_s=60.0, max_bytes=1000, clock=lambda: self.now_s)
        self.layer = Idempotency(self.cache, self.owner.follow)

    def start(
        self,
        execute: Callable[[Call, Callable[[bytes], None]], Any],
        writer: FakeWriter | None = None,
        allowed_s: float = 60.0,
    ) -> "tuple[Call, asyncio.Task[bytes]]":
        """Starts a call whose handler is `execute`."""
        now_s = asyncio.get_running_loop().time()
        holder: list[Call] = []

        async def run() -> bytes:
            async def executed(record: Callable[[bytes], None]) -> bytes:
                self.executed.append(holder[0])
                return bytes(await execute(holder[0], record) or b"")

            streamed: Any = writer
            return await self.layer.respond(holder[0], IdempotentRequest(KEY, DIGEST, executed, streamed))

        task = asyncio.ensure_future(run())
        holder.append(Call(CallIdentity(KEY.method, KEY.request_id), Deadline(now_s, now_s + allowed_s), task))
        return holder[0], task


async def answer(_call: Call, _record: Callable[[bytes], None]) -> bytes:
    return b"here"


async def owned_elsewhere(call: Call, _record: Callable[[bytes], None]) -> bytes:
    """The router names another owner until this gateway takes over."""
    if not call.takes_over:
        raise OwnedElsewhere("gateway-b:1")
    return b"here"


async def never(_call: Call, _record: Callable[[bytes], None]) -> bytes:
    await asyncio.Event().wait()
    return b""


async def settled() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_unary_call_of_another_owner_returns_the_response_of_the_owner() -> None:
    bench = Bench(Owner([b"there"]))
    call, task = bench.start(owned_elsewhere)
    assert await task == b"there"
    assert call.replayed
    assert bench.cache.find(KEY, DIGEST) is None, "only the owner stores the response"


async def test_stream_of_another_owner_sends_every_message_of_the_owner() -> None:
    bench, writer = Bench(Owner([b"a", b"b"])), FakeWriter()
    _, task = bench.start(owned_elsewhere, writer)
    assert await task == b""
    assert writer.written == [b"a", b"b"]


async def test_owner_unknown_before_the_first_message_is_taken_over() -> None:
    bench = Bench(Owner(failure=UnknownCallError()))
    call, task = bench.start(owned_elsewhere)
    assert await task == b"here"
    assert call.takes_over
    assert not call.replayed, "the call used the model itself and must be metered"
    assert bench.executed == [call, call]
    assert bench.cache.find(KEY, DIGEST) is not None


async def test_takeover_sends_a_stream_once() -> None:
    bench, writer = Bench(Owner(failure=UnknownCallError())), FakeWriter()

    async def execute(call: Call, record: Callable[[bytes], None]) -> bytes:
        await owned_elsewhere(call, record)
        for message in (b"a", b"b"):
            record(message)
            await writer.write(message)
        return b""

    call, task = bench.start(execute, writer)
    repeat_writer = FakeWriter()
    _, repeat = bench.start(never, repeat_writer)
    await asyncio.gather(task, repeat)
    assert writer.written == repeat_writer.written == [b"a", b"b"]
    assert bench.executed == [call, call]


async def test_owner_failure_before_the_first_message_is_the_failure_of_the_call() -> None:
    bench = Bench(Owner(failure=ServeError(Reason.ENGINE_FAILED, "broken")))
    call, task = bench.start(owned_elsewhere)
    with pytest.raises(ServeError) as caught:
        await task
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert bench.executed == [call]


async def test_owner_lost_after_the_first_message_fails_the_stream_and_does_not_run_it_again() -> None:
    bench, writer = Bench(Owner([b"a"], failure=LOST)), FakeWriter()
    call, task = bench.start(owned_elsewhere, writer)
    with pytest.raises(ServeError) as caught:
        await task
    assert caught.value is LOST
    assert writer.written == [b"a"]
    assert bench.executed == [call]
    assert bench.cache.find(KEY, DIGEST) is None, "a failed request may be tried again"


async def test_local_repeats_of_a_copied_call_receive_the_copy() -> None:
    bench = Bench(Owner([b"a", b"b"]))
    bench.owner.proceed.clear()
    writers = [FakeWriter(), FakeWriter()]
    (_, first), (repeat_call, repeat) = (bench.start(owned_elsewhere, writer) for writer in writers)
    await settled()
    assert writers[1].written == [b"a", b"b"], "a repeat receives messages while they come"
    bench.owner.proceed.set()
    await asyncio.gather(first, repeat)
    assert repeat_call.replayed
    assert bench.owner.followed == 1


async def test_local_repeats_fail_with_overloaded_if_the_first_call_is_cancelled() -> None:
    bench = Bench()
    _, first = bench.start(never)
    await settled()
    repeats = [bench.start(answer)[1] for _ in range(3)]
    await settled()
    first.cancel()
    failures = await asyncio.gather(*repeats, return_exceptions=True)
    assert [failure.reason for failure in failures if isinstance(failure, ServeError)] == [Reason.OVERLOADED] * 3
    assert all(isinstance(failure, ServeError) and failure.retry_after_s for failure in failures)
    assert len(bench.executed) == 1
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await bench.start(answer)[1] == b"here", "the next try runs"


async def test_cancelled_repeat_leaves_the_first_call_alone() -> None:
    bench, proceed = Bench(), asyncio.Event()

    async def execute(_call: Call, _record: Callable[[bytes], None]) -> bytes:
        await proceed.wait()
        return b"here"

    _, first = bench.start(execute)
    await settled()
    _, repeat = bench.start(execute)
    await settled()
    repeat.cancel()
    await settled()
    proceed.set()
    assert await first == b"here"
    assert repeat.cancelled()


async def test_fault_of_the_first_call_is_not_shown_to_repeats() -> None:
    bench, proceed = Bench(), asyncio.Event()

    async def broken(_call: Call, _record: Callable[[bytes], None]) -> bytes:
        await proceed.wait()
        raise KeyError("secret")

    _, first = bench.start(broken)
    await settled()
    _, repeat = bench.start(answer)
    await settled()
    proceed.set()
    with pytest.raises(ServeError) as caught:
        await repeat
    assert caught.value.reason is Reason.OVERLOADED
    assert "secret" not in caught.value.message
    with pytest.raises(KeyError):
        await first


async def test_repeat_that_waits_longer_than_its_deadline_fails_alone() -> None:
    bench = Bench()
    _, first = bench.start(never)
    await settled()
    _, repeat = bench.start(answer, allowed_s=0.01)
    with pytest.raises(ServeError) as caught:
        await repeat
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    assert not first.done()
    first.cancel()


async def test_partial_response_is_not_given_to_repeats() -> None:
    bench, proceed = Bench(), asyncio.Event()

    async def partial(call: Call, _record: Callable[[bytes], None]) -> bytes:
        await proceed.wait()
        call.progress.partial = True
        return b"some"

    _, first = bench.start(partial)
    await settled()
    _, repeat = bench.start(answer)
    await settled()
    proceed.set()
    assert await first == b"some"
    with pytest.raises(ServeError) as caught:
        await repeat
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED


async def test_reservation_is_released_before_the_owner_is_followed() -> None:
    bench, released = Bench(Owner([b"there"])), []

    class Handle:
        def settle(self, used_tokens: int) -> None:
            released.append(used_tokens)

    async def execute(call: Call, record: Callable[[bytes], None]) -> bytes:
        call.accounting.reservation = Handle()
        return await owned_elsewhere(call, record)

    await bench.start(execute)[1]
    assert released == [0]


def test_response_ends_once() -> None:
    shared = SharedResponse(DIGEST)
    shared.fail(LOST)
    shared.succeed()
    assert shared.ended
    assert not shared.complete


def test_responses_are_evicted_by_age_and_by_size() -> None:
    now_s = 0.0
    cache = IdempotencyCache(window_s=10.0, max_bytes=100, clock=lambda: now_s)

    def store(name: str, size: int) -> None:
        with cache.recording(IdempotencyKey("t", "m", name), DIGEST) as shared:
            shared.put(b"x" * size)

    def known(name: str) -> bool:
        return cache.find(IdempotencyKey("t", "m", name), DIGEST) is not None

    store("a", 60)
    store("b", 60)
    assert (known("a"), known("b")) == (False, True)
    store("huge", 101)
    assert not known("huge")
    store("c", 10)
    now_s = 9.9
    assert known("c")
    now_s = 10.0
    assert not known("c")


def test_tenants_do_not_share_request_ids() -> None:
    cache = IdempotencyCache(window_s=10.0, max_bytes=100, clock=lambda: 0.0)
    with cache.recording(IdempotencyKey("a", "m", "id"), DIGEST):
        assert cache.find(IdempotencyKey("b", "m", "id"), DIGEST) is None
        assert cache.find(IdempotencyKey("a", "m", "id"), DIGEST) is not None


def test_key_with_another_message_is_refused_by_field() -> None:
    cache = IdempotencyCache(window_s=10.0, max_bytes=100, clock=lambda: 0.0)
    with cache.recording(KEY, DIGEST), pytest.raises(ServeError) as caught:
        cache.find(KEY, b"other")
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["request_id"]
