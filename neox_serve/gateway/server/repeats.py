"""Repeats of a request, by its id: they join the call that runs, or get what it gave, and the model never runs twice.

A client that got no answer does not know whether its call was served; it sends the same message with the same request_id again. While the
first call runs the repeat waits for it, a stream from its first event on; for some time afterwards it gets the same answer at once. Only
success is remembered: a call that failed may be tried again. Where the first call's client gives up, repeats fail with it and may try
again.

A gateway remembers its own calls. The router knows which gateway has which, so that a repeat that comes to another one is answered from
there (`neox_serve.gateway.server.joins`), or refused where its message is another; without a router, or past its memory, it runs anew.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from neox_serve.core.errors import Reason, ServeError, invalid

Key = tuple[str, str, str]
"""Tenant, method, request id."""

_RETRY_S = 0.5


@dataclass(slots=True, eq=False)
class Run:
    """A call that others may join. messages: all it has sent, in order. ended: with success, once `done` is set."""

    digest: bytes
    messages: list[bytes] = field(default_factory=list)
    error: ServeError | None = None
    done: bool = False
    size_bytes: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, message: bytes) -> None:
        """The call has sent a message."""
        self.messages.append(message)
        if not self.news.is_set():
            self.news.set()

    async def next(self, position: int) -> bytes | None:
        """The message at a position, once it is there; None where the call ended before it. Raises ServeError where the call failed."""
        while position >= len(self.messages):
            if self.error is not None:
                raise self.error
            if self.done:
                return None
            self.news.clear()
            await self.news.wait()
        return self.messages[position]


class Repeats:
    """All calls that have an id of their client's. memory_s: how long an answer is kept; max_bytes: how much of them. clock: seconds."""

    def __init__(self, *, memory_s: float, max_bytes: int, clock: Callable[[], float]) -> None:
        self._memory_s = memory_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[Key, Run] = {}
        self._ended: OrderedDict[Key, tuple[float, Run]] = OrderedDict()
        self._bytes = 0

    def find(self, key: Key, digest: bytes) -> Run | None:
        """The call that a message of this digest repeats. Raises INVALID_ARGUMENT where its id belongs to a call with another message."""
        self._forget_old()
        run = self._running.get(key)
        if run is None and key in self._ended:
            run = self._ended[key][1]
        if run is not None and run.digest != digest:
            raise invalid("request_id", f"{key[2]!r} was given to a call with another message, and may not be used again yet")
        return run

    def begin(self, key: Key, digest: bytes) -> Run:
        """A call that repeats none. It must be ended."""
        run = self._running[key] = Run(digest)
        return run

    def succeed(self, key: Key, run: Run) -> None:
        """The call has sent all it had to."""
        run.done = True
        run.news.set()
        del self._running[key]
        run.size_bytes = sum(map(len, run.messages))
        self._ended[key] = (self._clock(), run)
        self._bytes += run.size_bytes
        self._forget_old()

    def fail(self, key: Key, run: Run, error: ServeError) -> None:
        """The call has failed; where its client gave up, those that joined it are told to try again."""
        if error.reason is Reason.CANCELLED:
            error = ServeError(Reason.OVERLOADED, "the call that this one repeats was given up by its client", {}, _RETRY_S)
        run.error = error
        run.news.set()
        del self._running[key]

    def _forget_old(self) -> None:
        now_s = self._clock()
        while self._ended:
            ended_s, run = next(iter(self._ended.values()))
            if now_s - ended_s < self._memory_s and self._bytes <= self._max_bytes:
                return
            self._ended.popitem(last=False)
            self._bytes -= run.size_bytes


def digest_of(raw: bytes) -> bytes:
    """What tells a message from others."""
    return hashlib.blake2b(raw, digest_size=16).digest()
