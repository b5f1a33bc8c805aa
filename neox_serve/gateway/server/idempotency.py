"""Idempotent requests: a request id runs once, and every call that repeats it gets the same response.

A client that received no response cannot know whether its call was served, so it sends the same message with the same request id again.
While the first call runs, the repeat waits for it and receives a stream from its first message on. For `limits.idempotency_window_s`
afterwards it gets the stored response at once. Only success is stored: a call that failed may be tried again. If the first call is
cancelled, the calls that wait for it fail with OVERLOADED and may try again.

Each gateway stores its own responses. The router knows which gateway owns which key, and answers a repeat that arrives at another gateway
with OwnedElsewhere; that gateway then copies the response from the owner (`neox_serve.gateway.server.idempotency_link`). If there is no
router, or the owner no longer knows the request, the request runs again.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from neox_serve.core.errors import OwnedElsewhere, Reason, ServeError, invalid
from neox_serve.gateway.server.calls import Call, StreamWriter

_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What a call and its repeats have in common."""

    tenant: str
    """Name of the tenant."""
    method: str
    """Full gRPC path."""
    request_id: str
    """Id that the client chose."""

    def __str__(self) -> str:
        return f"{self.tenant}/{self.method}/{self.request_id}"


class SharedResponse:
    """The messages that one call sends, recorded so that any number of repeats can read them. It ends once, in success or failure."""

    def __init__(self, digest: bytes) -> None:
        """`digest` identifies the request message; see `digest_of`."""
        self.digest = digest
        self.storable = True
        self._messages: list[bytes] = []
        self._error: ServeError | None = None
        self._complete = False
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether no further message will come."""
        return self._complete or self._error is not None

    @property
    def complete(self) -> bool:
        """Whether the call ended with success."""
        return self._complete

    @property
    def size_bytes(self) -> int:
        """Bytes of all messages."""
        return sum(map(len, self._messages))

    def put(self, message: bytes) -> None:
        """Records a message."""
        self._messages.append(message)
        if not self._changed.is_set():
            self._changed.set()

    def succeed(self) -> None:
        """Ends the response with success, unless it has ended."""
        if not self.ended:
            self._complete = True
            self._changed.set()

    def fail(self, error: ServeError) -> None:
        """Ends the response with an error, unless it has ended."""
        if not self.ended:
            self._error = error
            self._changed.set()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Yields every message from the first one on, waiting for those to come. Raises ServeError if the call failed."""
        position = 0
        while True:
            while position < len(self._messages):
                yield self._messages[position]
                position += 1
            if self._error is not None:
                raise self._error
            if self._complete:
                return
            self._changed.clear()
            await self._changed.wait()


class IdempotencyCache:
    """The responses of this gateway by key: those of running calls, and those of completed calls for a time."""

    def __init__(self, *, window_s: float, max_bytes: int, clock: Callable[[], float]) -> None:
        """Stores completed responses for `window_s` seconds and in at most `max_bytes`, the oldest being dropped first."""
        self._window_s = window_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[IdempotencyKey, SharedResponse] = {}
        self._stored: OrderedDict[IdempotencyKey, tuple[float, SharedResponse]] = OrderedDict()
        self._stored_bytes = 0

    def find(self, key: IdempotencyKey, digest: bytes) -> SharedResponse | None:
        """Returns the response of a running or completed call, or None. Raises INVALID_ARGUMENT if that call had another message."""
        self._evict()
        shared = self._running.get(key)
        if shared is None and key in self._stored:
            shared = self._stored[key][1]
        if shared is not None and shared.digest != digest:
            raise invalid("request_id", f"{key.request_id!r} was already used for a different message; choose a new request_id")
        return shared

    @contextmanager
    def recording(self, key: IdempotencyKey, digest: bytes) -> Iterator[SharedResponse]:
        """Makes the block the one that answers `key`. The response ends with the block, and is stored if it is a success."""
        shared = self._running[key] = SharedResponse(digest)
        try:
            yield shared
            shared.succeed()
        except ServeError as error:
            shared.fail(_abandoned() if error.reason is Reason.CANCELLED else error)
            raise
        finally:
            shared.fail(_abandoned())  # the block was cancelled, or raised what no client may see
            del self._running[key]
            if shared.complete and shared.storable:
                self._store(key, shared)

    def _store(self, key: IdempotencyKey, shared: SharedResponse) -> None:
        self._stored[key] = (self._clock(), shared)
        self._stored_bytes += shared.size_bytes
        self._evict()

    def _evict(self) -> None:
        now_s = self._clock()
        while self._stored:
            stored_at_s, shared = next(iter(self._stored.values()))
            if now_s - stored_at_s < self._window_s and self._stored_bytes <= self._max_bytes:
                return
            self._stored.popitem(last=False)
            self._stored_bytes -= shared.size_bytes


class UnknownCallError(Exception):
    """The owner of a key does not know the request, or cannot be reached. No message has been received from it."""


Follow = Callable[[str, IdempotencyKey, bytes], AsyncGenerator[bytes, None]]
"""Copies a response from another gateway, given its address, the key and the digest.

Yields every message. Raises UnknownCallError before the first one, or ServeError if the call failed or the other gateway was lost.
"""


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that may run once only."""

    key: IdempotencyKey
    """Identifies its repeats."""
    digest: bytes
    """Identifies its message."""
    execute: Callable[[Callable[[bytes], None]], Awaitable[bytes]]
    """Runs the handler, which passes every message of a stream to the given function. Returns the response of a unary method."""
    writer: StreamWriter | None
    """Sends copied messages to the client of a stream; None for a unary method."""


class Idempotency:
    """Answers each request by running it, or with the response of the call that it repeats."""

    def __init__(self, cache: IdempotencyCache, follow: Follow) -> None:
        self._cache = cache
        self._follow = follow

    async def respond(self, call: Call, request: IdempotentRequest) -> bytes:
        """Returns the response of a unary method, or sends that of a streaming one and returns b"". Raises ServeError."""
        shared = self._cache.find(request.key, request.digest)
        if shared is not None:
            call.replayed = True
            return await _forward(call, request, shared.messages())
        call.idempotency_key = str(request.key)
        with self._cache.recording(request.key, request.digest) as shared:
            return await self._produce(call, request, shared)

    async def _produce(self, call: Call, request: IdempotentRequest, shared: SharedResponse) -> bytes:
        """Runs the request here, or copies its response from the owner. If the owner does not know the request, takes it over."""
        while True:
            try:
                response = await request.execute(shared.put)
            except OwnedElsewhere as elsewhere:
                owner_address = elsewhere.address
            else:
                if request.writer is None:
                    shared.put(response)
                if call.progress.partial:  # no answer for a repeat, which may have more time
                    shared.fail(call.deadline.exceeded())
                return response
            call.accounting.settle(0)
            call.replayed, shared.storable = True, False  # the owner stores the response
            try:
                return await _forward(call, request, self._follow(owner_address, request.key, request.digest), shared.put)
            except UnknownCallError:
                call.replayed, shared.storable = False, True
                call.takes_over = True


async def _forward(
    call: Call, request: IdempotentRequest, messages: AsyncGenerator[bytes, None], record: Callable[[bytes], None] | None = None
) -> bytes:
    """Sends messages to the client, or returns the only one of a unary response. Raises ServeError, also at the call's deadline."""
    response = b""
    async with call.deadline.enforced(), aclosing(messages):
        async for message in messages:
            if record is not None:
                record(message)
            if request.writer is None:
                response = message
            else:
                await request.writer.write(message)
    return response


def digest_of(raw: bytes) -> bytes:
    """Returns 16 bytes that identify a request message."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def _abandoned() -> ServeError:
    return ServeError(Reason.OVERLOADED, "the call that this one repeats was cancelled before it ended; try again", {}, _RETRY_S)
