"""The deadline of a call, and ways to wait that respect it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from neox_serve.core.errors import Reason, ServeError

T = TypeVar("T")

PARTIAL_MARGIN_S = 0.25
"""A partial response is sent this long before the deadline, to allow for one turn of a busy event loop and the network."""
PARTIAL_MARGIN_FRACTION = 0.25
"""Largest fraction of the time allowed that the margin may take. It matters for deadlines shorter than one second."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call arrived and when it must end, in seconds of the event loop's clock."""

    arrived_at_s: float
    """When the call arrived."""
    ends_at_s: float
    """When the call must have ended."""

    @property
    def allowed_s(self) -> float:
        """Seconds between arrival and deadline."""
        return self.ends_at_s - self.arrived_at_s

    @property
    def partial_at_s(self) -> float:
        """When a partial response must be sent to reach the client before the deadline."""
        return self.ends_at_s - min(PARTIAL_MARGIN_S, PARTIAL_MARGIN_FRACTION * self.allowed_s)

    def left_s(self, now_s: float) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.ends_at_s - now_s)

    def exceeded(self) -> ServeError:
        """Returns the error of a call that did not end in time."""
        return ServeError(Reason.DEADLINE_EXCEEDED, f"the call did not finish within the {self.allowed_s:.3f} s allowed")

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancels the block at the deadline and raises DEADLINE_EXCEEDED."""
        try:
            async with asyncio.timeout_at(self.ends_at_s) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self.exceeded() from None


class Expired(Exception):  # noqa: N818 - the time is up; nothing has failed
    """Raised by `Expiry.wait` when its time is up."""


class Expiry:
    """Interrupts the waits of a task at a given time, but never its writes: cancelling a write would cut a message in half.

    A call needs one timer, however many times it waits.
    """

    def __init__(self, at_s: float, on_expiry: Callable[[], None]) -> None:
        """Starts the timer for the current task. `on_expiry` is called at `at_s` (event loop clock), whatever the task does then."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an Expiry must be created in a task")
        self._task = task
        self._on_expiry = on_expiry
        self._waiting = False
        self._interrupted = False
        self.expired = False
        self._timer = asyncio.get_running_loop().call_at(at_s, self._expire)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Returns the result of the awaitable. Raises Expired if the time is up first."""
        self._waiting = True
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._interrupted and self._task.uncancel() == 0:
                raise Expired from None
            raise
        finally:
            self._waiting = False

    def close(self) -> None:
        """Stops the timer."""
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        if self._waiting:
            self._interrupted = True
            self._task.cancel()
        self._on_expiry()
