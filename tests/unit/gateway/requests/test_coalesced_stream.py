"""The asynchronous shell of the coalescer: its timers, and how it ends."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, DirectSink, Finish, FinishReason, SequenceDelta
from neox_serve.gateway.requests.coalesced_stream import CoalescedStream, coalesced
from neox_serve.gateway.requests.coalescing import ChunkPolicy
from neox_serve.v1 import inference_service_pb2

LONG = ChunkPolicy(min_interval_s=1000.0)
GONE = ServeError(Reason.REPLICA_LOST, "gone")


class Steps:
    """A TokenStream that returns one delta for each read, one turn of the loop later, and then fails."""

    admission_s = 0.5
    replica_id = "replica"
    gaps_s = ()
    explanation = "why"
    predicted_cached_tokens = 32

    def __init__(self, *deltas: Delta) -> None:
        self.left = deque(deltas)
        self.cancelled = False

    async def next(self, _direct: DirectSink | None = None, /) -> Sequence[Delta]:
        await asyncio.sleep(0)
        if not self.left:
            raise GONE
        return [self.left.popleft()]

    def cancel(self) -> None:
        self.cancelled = True


async def wait(reading: Awaitable[Sequence[Delta]]) -> Sequence[Delta]:
    """Waits without a deadline."""
    return await reading


def token(number: int, *, end: bool = False) -> Delta:
    finish = Finish(FinishReason.LENGTH) if end else None
    return Delta("k", (SequenceDelta(0, "x", (number,), finish=finish),), end=end)


def token_ids(deltas: Sequence[Delta]) -> list[int]:
    return [token_id for delta in deltas for sequence in delta.sequences for token_id in sequence.token_ids]


async def test_stream_without_options_is_left_as_it_is() -> None:
    stream = Steps()
    assert coalesced(stream, inference_service_pb2.StreamOptions(), wait) is stream
    assert coalesced(stream, inference_service_pb2.StreamOptions(min_chunk_tokens=1), wait) is stream
    assert coalesced(stream, inference_service_pb2.StreamOptions(min_chunk_tokens=2), wait) is not stream


async def test_coalesced_stream_passes_on_admission_and_cancel() -> None:
    stream = Steps()
    reader = CoalescedStream(stream, LONG, wait)
    reader.cancel()
    assert (reader.admission_s, stream.cancelled) == (0.5, True)


async def test_chunk_of_many_tokens_takes_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    set_timer, timers = loop.call_at, []

    def call_at(*arguments: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(set_timer(*arguments, **options))
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", call_at)
    reader = CoalescedStream(Steps(*map(token, range(99)), token(99, end=True)), LONG, wait)
    assert token_ids(await reader.next()) == [0]
    assert not timers
    assert token_ids(await reader.next()) == list(range(1, 100))
    assert len(timers) == 1


async def test_failure_comes_after_what_waited_and_again() -> None:
    reader = CoalescedStream(Steps(token(0), token(1)), LONG, wait)
    assert [token_ids(await reader.next()) for _ in range(2)] == [[0], [1]]
    for _ in range(2):
        with pytest.raises(ServeError, match="gone"):
            await reader.next()
