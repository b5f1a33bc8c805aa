"""Reading, writing and reopening bidirectional streams: what the four ends of the two links have in common.

grpc.aio breaks a stream on two concurrent writes, so each stream has one writer, which takes messages from a queue. grpc.aio also reports
the end of a stream in half a dozen ways; here all of them become StreamEndedError.
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
    """The stream has ended: one side closed it, or the connection broke."""


class Readable(Protocol[Received_co]):
    """The receiving half of a stream: a call or a servicer context."""

    async def read(self) -> Received_co | object:
        """Returns the next message, or grpc.aio.EOF."""


class Writable(Protocol[Sent_contra]):
    """The sending half of a stream: a call or a servicer context."""

    async def write(self, message: Sent_contra, /) -> None:
        """Sends a message when flow control allows."""


async def read(stream: Readable[Message], kind: type[Message]) -> Message:
    """Returns the next message. Raises StreamEndedError."""
    message = await _translated(stream.read())
    if not isinstance(message, kind):
        raise StreamEndedError("closed by the peer")
    return message


async def write(stream: Writable[Message], message: Message) -> None:
    """Sends a message when flow control allows. Raises StreamEndedError."""
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
        # grpc.aio raises CancelledError also if the peer, not this task, was cancelled.
        raise StreamEndedError("cancelled by the peer") from error


class SendQueue(Generic[Message]):
    """The messages that wait for the stream's one writer, in order."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._wake = asyncio.Event()

    def put(self, message: Message) -> None:
        """Queues a message. It is sent in this turn of the event loop or the next."""
        self._messages.append(message)
        self._wake.set()

    async def write_to(self, stream: Writable[Message]) -> None:
        """Writes queued messages until the stream ends. Raises StreamEndedError."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages, self._messages = self._messages, []
            for message in messages:
                await write(stream, message)


async def until_one_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs the given coroutines until one of them ends, then cancels the others. Raises what the one that ended raised."""
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
    """Jittered delays between attempts to connect: 25 ms, doubling up to 400 ms. A peer is found within half a second of its return."""

    _INITIAL_S = 0.025
    _MAX_S = 0.4

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._next_s = self._INITIAL_S

    def reset(self) -> None:
        """Starts over with the shortest delay, after a successful attempt."""
        self._next_s = self._INITIAL_S

    def next_s(self) -> float:
        """Returns the seconds to wait before the next attempt."""
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, self._MAX_S)
        return wait_s * self._rng.uniform(0.5, 1.0)


async def keep_connected(connect: Callable[[], Awaitable[None]], backoff: Backoff, peer: str) -> None:
    """Reconnects forever. `connect` runs one connection, and returns or raises when it has ended."""
    while True:
        try:
            await connect()
        except (StreamEndedError, TimeoutError, OSError) as error:
            _log.debug("link_ended", peer=peer, cause=str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001  boundary: nothing that a peer sends or a resolver raises may stop reconnection
            _log.warning("link_failed", peer=peer, exc_info=True)
        await asyncio.sleep(backoff.next_s())


async def repeat(action: Callable[[], Awaitable[None]], interval_s: float) -> None:
    """Runs an action forever, with a pause of interval_s after each run."""
    while True:
        try:
            await action()
        except Exception:  # noqa: BLE001  boundary: a failed run must not stop later runs
            _log.warning("repeated_action_failed", exc_info=True)
        await asyncio.sleep(interval_s)


async def stop_task(task: asyncio.Task[None] | None) -> None:
    """Cancels a task and waits until it has ended. Does nothing for None."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def steady_wall_clock(clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """Returns a clock in seconds since the epoch that never goes back: wall-clock time now, advanced by a monotonic `clock`."""
    offset_s = time.time() - clock()
    return lambda: offset_s + clock()
