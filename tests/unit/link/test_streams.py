"""Streams without a network: order, translation of errors, backoff and background tasks."""

import asyncio
from random import Random
from typing import Any

import pytest
from grpc import aio

from neox_serve.link.streams import Backoff, SendQueue, StreamEndedError, read, repeat, steady_wall_clock, stop_task, until_one_ends


class Stream:
    """One end of a stream: returns or raises what it was given, and records what is written."""

    def __init__(self, *incoming: Any) -> None:
        self.incoming = list(incoming)
        self.written: list[int] = []

    async def read(self) -> Any:
        await asyncio.sleep(0)
        message = self.incoming.pop(0)
        if isinstance(message, BaseException):
            raise message
        return message

    async def write(self, message: int, /) -> None:
        await asyncio.sleep(0)
        self.written.append(message)


@pytest.mark.parametrize("end", [aio.EOF, aio.UsageError("done"), asyncio.InvalidStateError("done"), asyncio.CancelledError()])
async def test_read_translates_every_end_of_a_stream(end: object) -> None:
    stream = Stream("first", end)
    assert await read(stream, str) == "first"
    with pytest.raises(StreamEndedError):
        await read(stream, str)


async def test_read_in_a_cancelled_task_raises_cancelled_error() -> None:
    class Silent:
        async def read(self) -> object:
            return await asyncio.Event().wait()

    reading = asyncio.ensure_future(read(Silent(), str))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_send_queue_writes_in_order_including_messages_queued_while_writing() -> None:
    queue, stream = SendQueue[int](), Stream()
    writing = asyncio.ensure_future(queue.write_to(stream))
    for number in range(3):
        queue.put(number)
    await asyncio.sleep(0)
    queue.put(3)
    await asyncio.sleep(0.01)
    assert stream.written == [0, 1, 2, 3]
    await stop_task(writing)


async def test_until_one_ends_cancels_the_others_and_raises_the_error() -> None:
    cancelled: list[str] = []

    async def wait_forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("other")
            raise

    async def fail() -> None:
        await asyncio.sleep(0)
        raise StreamEndedError("over")

    with pytest.raises(StreamEndedError, match="over"):
        await until_one_ends(wait_forever(), fail())
    assert cancelled == ["other"]


def test_backoff_doubles_with_jitter_up_to_its_maximum_and_resets() -> None:
    backoff = Backoff(Random(0))
    delays_s = [backoff.next_s() for _ in range(8)]
    for delay_s, full_s in zip(delays_s, [0.025, 0.05, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4], strict=True):
        assert full_s / 2 <= delay_s <= full_s
    backoff.reset()
    assert backoff.next_s() <= 0.025


async def test_repeat_goes_on_after_a_failed_run() -> None:
    runs = 0

    async def act() -> None:
        nonlocal runs
        runs += 1
        raise ValueError("failed")

    task = asyncio.ensure_future(repeat(act, 0.0))
    for _ in range(20):
        await asyncio.sleep(0)
    await stop_task(task)
    assert runs > 2


def test_steady_wall_clock_advances_with_the_monotonic_clock() -> None:
    now_s = 5.0
    clock = steady_wall_clock(lambda: now_s)
    first_s = clock()
    now_s = 7.5
    assert clock() - first_s == pytest.approx(2.5)
