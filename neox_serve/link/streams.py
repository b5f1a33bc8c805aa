"""Reading, writing and reopening a bidirectional stream: what all four ends of the two links have in common.

grpc.aio breaks a stream on two concurrent writes, so each stream has one writer, fed from a queue. It reports the end of a stream in
half a dozen ways; here all of them become StreamEndedError.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog
from grpc import aio

from neox_serve.link.channels import closed_status

_log = structlog.get_logger(__name__)

Message = TypeVar("Message")
Received_co = TypeVar("Received_co", covariant=True)
Sent_contra = TypeVar("Sent_contra", contravariant=True)


class StreamEndedError(Exception):
    """The stream is over, by either side's wish or by a broken connection."""


class Readable(Protocol[Received_co]):
    """The receiving half of a stream: a call's or a servicer context's."""

    async def read(self) -> Received_co | object:
        """The next message, or grpc.aio.EOF."""


class Writable(Protocol[Sent_contra]):
    """The sending half of a stream: a call's or a servicer context's."""

    async def write(self, message: Sent_contra, /) -> None:
        """Sends a message once flow control allows."""


async def read(stream: Readable[Message], kind: type[Message]) -> Message:
    """The next message. Raises StreamEndedError."""
    message = await _translated(stream.read())
    if not isinstance(message, kind):
        raise StreamEndedError("closed by the peer")
    return message


async def write(stream: Writable[Message], message: Message) -> None:
    """Sends a message once flow control allows. Raises StreamEndedError."""
    await _translated(stream.write(message))


async def _translated(operation: Awaitable[Received_co]) -> Received_co:
    try:
        return await operation
    except grpc.RpcError as error:
        raise StreamEndedError(closed_status(error)) from error
    except (aio.BaseError, asyncio.InvalidStateError) as error:
        raise StreamEndedError(str(error)) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # grpc.aio raises CancelledError too where the peer, not this task, was cancelled.
        raise StreamEndedError("cancelled by the peer") from error


class SendQueue(Generic[Message]):
    """Messages for a stream's one writer, in order."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._wake = asyncio.Event()

    def put(self, message: Message) -> None:
        """Queues a message; it leaves in this or the next turn of the loop."""
        self._messages.append(message)
        self._wake.set()

    async def write_to(self, stream: Writable[Message]) -> None:
        """Writes for as long as the stream lives. Raises StreamEndedError."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages, self._messages = self._messages, []
            for message in messages:
                await write(stream, message)


async def until_one_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs the parts of a stream until one of them ends, then ends the others. Raises what that one raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class Backoff:
    """Jittered waits between attempts: from 25 ms, doubling, to 400 ms at most: a peer that is back is found within half a second."""

    _FIRST_S = 0.025
    _LONGEST_S = 0.4

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._next_s = self._FIRST_S

    def reset(self) -> None:
        """Starts over, after an attempt that worked."""
        self._next_s = self._FIRST_S

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, self._LONGEST_S)
        return wait_s * self._rng.uniform(0.5, 1.0)


async def keep_connected(connect: Callable[[], Awaitable[None]], backoff: Backoff, peer: str) -> None:
    """Connects again whenever the connection ends, for ever. `connect` returns or raises when it has ended."""
    while True:
        try:
            await connect()
        except (StreamEndedError, TimeoutError, OSError) as error:
            _log.debug("link_ended", peer=peer, cause=str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001  a boundary: whatever a peer sends or a resolver raises must not end the link for good
            _log.warning("link_failed", peer=peer, exc_info=True)
        await asyncio.sleep(backoff.next_s())


async def repeat(action: Callable[[], Awaitable[None]], interval_s: float) -> None:
    """Does something for ever, with this pause between."""
    while True:
        try:
            await action()
        except Exception:  # noqa: BLE001  a boundary: one report that fails must not end the reports for good
            _log.warning("repeated_action_failed", exc_info=True)
        await asyncio.sleep(interval_s)


async def stop_task(task: asyncio.Task[None] | None) -> None:
    """Cancels a task and waits for its end; None is none."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def steady_wall_clock(clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """Returns a clock in seconds since the epoch that never goes back: wall-clock time now, advanced by a monotonic `clock`."""
    offset_s = time.time() - clock()
    return lambda: offset_s + clock()
