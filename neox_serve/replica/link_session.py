"""One gateway's link as the replica sees it: the requests that came in on it, and the frames that wait to be sent.

The engine calls the sink from its step and must never wait, so frames are queued for the stream's writer. If a gateway stops reading, its
backlog is sent in fewer and larger frames, and beyond a bound its link is closed. It slows down neither the engine nor other gateways.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from itertools import chain
from typing import Any

import structlog
from opentelemetry.trace import Span

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta
from neox_serve.engine.protocol import Engine
from neox_serve.internal.v1 import engine_link_pb2 as pb
from neox_serve.link.streams import Readable, StreamEndedError, Writable, read, write
from neox_serve.telemetry.tracing import Tracing, end
from neox_serve.wire import engine_messages as wire

_log = structlog.get_logger(__name__)

_KEY_BITS = 32
"""Bits of a request's key on its link."""
_link_key: Callable[[Any], int] = ((1 << _KEY_BITS) - 1).__and__
"""Converts the engine's key of a request, which has the link's number in its upper bits, to its key on the link."""

_COALESCE_FRAMES = 16
"""A backlog of at least this many frames is sent as one frame."""
_MAX_BACKLOG_DELTAS = 131_072
"""About 20 MB. A gateway with such a backlog has not read for a long time."""


class EngineLinkSession:
    """The replica's side of one stream.

    number: unique among the replica's links. admit: raises ServeError if a request must be refused. on_ended: called when a request has
    ended or a frame was written. max_backlog_deltas: deltas that may wait to be sent.
    """

    def __init__(
        self,
        *,
        number: int,
        engine: Engine,
        admit: Callable[[], None],
        on_ended: Callable[[], None],
        tracing: Tracing,
        max_backlog_deltas: int = _MAX_BACKLOG_DELTAS,
    ) -> None:
        self._tracing = tracing
        self._spans: dict[Hashable, Span] = {}
        self._base = number << _KEY_BITS
        self._engine = engine
        self._admit = admit
        self._on_ended = on_ended
        self._max_backlog_deltas = max_backlog_deltas
        self._live: dict[Hashable, str] = {}  # key: request id
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._freeing: set[asyncio.Task[None]] = set()
        self._frames: deque[Sequence[Delta]] = deque()
        self._results: deque[pb.ConnectResponse] = deque()
        self._backlog_deltas = 0
        self._writing = False
        self._wake = asyncio.Event()
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closed = False
        # The same object for the life of the link, because the engine groups a step's deltas by sink.
        self._sink = self._take

    @property
    def requests(self) -> int:
        """Number of requests accepted and not ended."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """Whether no request is running or being freed, and nothing waits to be written."""
        return not (self._live or self._freeing or self._frames or self._results or self._writing)

    async def handle_commands(self, stream: Readable[pb.ConnectRequest]) -> None:
        """Carries out the gateway's commands until the stream ends. Raises StreamEndedError."""
        while True:
            commands = (await read(stream, pb.ConnectRequest)).commands
            for generation in commands.generations:
                self._start(generation, self._generate(generation))
            for embedding in commands.embeddings:
                self._start(embedding, self._embed(embedding))
            for key in commands.cancelled_keys:
                self._cancel(self._base | key)

    async def write_to(self, stream: Writable[pb.ConnectResponse]) -> None:
        """Writes frames until the stream ends. Raises StreamEndedError."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._writing = True
            while self._frames:
                await write(stream, self._next_frame())
            while self._results:
                await write(stream, self._results.popleft())
            self._writing = False
            self._on_ended()

    def end(self, cause: str) -> None:
        """Makes `ended` raise, which ends the stream."""
        if not self._end.done():
            self._end.set_result(cause)

    async def ended(self) -> None:
        """Waits until the stream must end, because the replica stops or the gateway reads too slowly, and raises StreamEndedError."""
        raise StreamEndedError(await asyncio.shield(self._end))

    async def close(self) -> None:
        """Aborts all requests of the link."""
        self._closed = True
        keys = list(self._live)
        for key in keys:
            self._end_span(key, "CANCELLED")
        self._live.clear()
        self._frames.clear()
        self._results.clear()
        await asyncio.gather(*(self._free(key) for key in keys))

    # Requests

    def _start(self, message: pb.SubmitGeneration | pb.SubmitEmbedding, work: Coroutine[Any, Any, None]) -> None:
        key = self._base | message.key
        self._live[key] = message.request_id
        if message.traceparent:
            name = "engine.generate" if isinstance(message, pb.SubmitGeneration) else "engine.embed"
            facts = {"neox.request_id": message.request_id, "neox.prompt_tokens": len(message.prompt_token_ids)}
            self._spans[key] = self._tracing.begin(name, message.traceparent, facts)
        _log.debug("request_accepted", request_id=message.request_id)
        task = asyncio.ensure_future(work)
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _generate(self, message: pb.SubmitGeneration) -> None:
        key = self._base | message.key
        try:
            self._admit()
            await self._engine.generate(key, wire.generation_from_proto(message), self._sink)
        except ServeError as error:
            self._take((Delta(key, end=True, failure=error),))
        except Exception:  # noqa: BLE001  boundary to the engine: an exception fails only this request
            self._take((Delta(key, end=True, failure=_broken(message.request_id)),))

    async def _embed(self, message: pb.SubmitEmbedding) -> None:
        key, failure = self._base | message.key, ""
        try:
            self._admit()
            result = await self._engine.embed(key, wire.embedding_from_proto(message))
            response = wire.embedding_result_to_proto(message.key, result)
        except ServeError as error:
            _note_failure(message.request_id, error)
            failure = error.reason.value
            response = wire.embedding_result_to_proto(message.key, error)
        except Exception:  # noqa: BLE001  as above
            failure = Reason.ENGINE_FAILED.value
            response = wire.embedding_result_to_proto(message.key, _broken(message.request_id))
        self._end_span(key, failure)
        if self._live.pop(key, None) is not None:
            self._results.append(response)
            self._wake.set()

    def _cancel(self, key: int) -> None:
        if self._live.pop(key, None) is not None:
            self._end_span(key, "CANCELLED")
            task = asyncio.ensure_future(self._free(key))
            self._freeing.add(task)
            task.add_done_callback(self._freed)

    async def _free(self, key: Hashable) -> None:
        """Cancels a request's task, if it is still being submitted, and aborts it in the engine."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._engine.abort(key)

    def _freed(self, task: asyncio.Task[None]) -> None:
        self._freeing.discard(task)
        self._on_ended()

    # Frames

    def _take(self, deltas: Sequence[Delta]) -> None:
        """The engine's sink: queues the output of a step as one frame."""
        if self._closed:
            return
        for delta in deltas:
            if delta.end:
                if self._spans:
                    self._end_span(delta.key, delta.failure.reason.value if delta.failure else "")
                request_id = self._live.pop(delta.key, None)
                if request_id is not None and delta.failure is not None:
                    _note_failure(request_id, delta.failure)
        self._frames.append(deltas)
        self._backlog_deltas += len(deltas)
        self._wake.set()
        if self._backlog_deltas > self._max_backlog_deltas:
            self.end(f"{self._backlog_deltas} deltas are unread, more than {self._max_backlog_deltas}")

    def _end_span(self, key: Hashable, failure: str) -> None:
        if (span := self._spans.pop(key, None)) is not None:
            end(span, failure)

    def _next_frame(self) -> pb.ConnectResponse:
        if len(self._frames) < _COALESCE_FRAMES:
            deltas: Iterable[Delta] = self._frames.popleft()
        else:
            deltas = list(chain.from_iterable(self._frames))
            self._frames.clear()
        deltas = tuple(deltas)
        self._backlog_deltas -= len(deltas)
        return wire.step_to_proto(deltas, _link_key)


def _note_failure(request_id: str, error: ServeError) -> None:
    _log.info("request_failed", request_id=request_id, reason=error.reason.value, error=error.message)


def _broken(request_id: str) -> ServeError:
    _log.exception("request_broke_engine", request_id=request_id)
    return ServeError(Reason.ENGINE_FAILED, "the engine failed on this request")
