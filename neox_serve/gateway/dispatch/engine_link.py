"""The gateway's end of an engine link: one stream to one replica, opened in advance and reopened whenever it breaks.

Commands of one turn of the event loop are sent as one message. The link is always read, even if the readers of its requests are slow; what
they leave unread is bounded by the maximum output of each request.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Protocol

import structlog

from neox_serve.core.errors import ServeError
from neox_serve.core.generation.request_life import replica_lost
from neox_serve.core.types import Delta, EmbeddingRequest, EmbeddingResult, GenerationRequest
from neox_serve.internal.v1 import engine_link_pb2 as pb
from neox_serve.internal.v1.engine_link_pb2_grpc import EngineLinkServiceStub
from neox_serve.link.channels import LinkTls, internal_channel
from neox_serve.link.streams import Backoff, StreamEndedError, Writable, keep_connected, read, stop_task, until_one_ends, write
from neox_serve.wire import engine_messages as wire

_log = structlog.get_logger(__name__)

_WELCOME_TIMEOUT_S = 2.0
"""Longest wait for the replica's welcome on a new stream."""


class DeltaReceiver(Protocol):
    """Receives the deltas of one request."""

    def push(self, delta: Delta) -> None:
        """Handles a delta. Must not block."""


class EngineLink:
    """A link to one replica. on_change: called when the link comes up or goes down."""

    def __init__(
        self,
        *,
        replica_id: str,
        address: str,
        gateway_id: str,
        rng: Random,
        on_change: Callable[["EngineLink"], None],
        tls: LinkTls | None = None,
    ) -> None:
        self._tls = tls
        self.replica_id = replica_id
        self._address = address
        self._gateway_id = gateway_id
        self._on_change = on_change
        self._backoff = Backoff(rng)
        self._generations: dict[int, DeltaReceiver] = {}
        self._embeddings: dict[int, asyncio.Future[EmbeddingResult]] = {}
        self._commands = _Commands()
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the replica has sent its welcome and the stream has not ended since."""
        return self._up.is_set()

    @property
    def requests_in_flight(self) -> int:
        """Number of requests sent and not ended."""
        return len(self._generations) + len(self._embeddings)

    def start(self) -> None:
        """Starts to connect, in a background task."""
        self._task = asyncio.ensure_future(keep_connected(self._connect, self._backoff, self.replica_id))

    async def close(self) -> None:
        """Closes the link. Requests in flight fail with REPLICA_LOST."""
        await stop_task(self._task)

    async def until_up(self, timeout_s: float) -> None:
        """Waits until the link is up. Raises ServeError(REPLICA_LOST) if that takes longer than timeout_s."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError as error:
            raise replica_lost(self.replica_id) from error

    def generate(self, key: int, request: GenerationRequest, receiver: DeltaReceiver) -> None:
        """Sends a request.

        Its deltas, or the failure of the link, go to the receiver. Raises ServeError(REPLICA_LOST) if the link is down.
        """
        self._check_up()
        self._generations[key] = receiver
        self._commands.generate(wire.generation_to_proto(key, request))

    def embed(self, key: int, request: EmbeddingRequest) -> asyncio.Future[EmbeddingResult]:
        """Sends a request and returns a future for its embedding or a ServeError. Raises ServeError(REPLICA_LOST) if the link is down."""
        self._check_up()
        future = asyncio.get_running_loop().create_future()
        self._embeddings[key] = future
        self._commands.embed(wire.embedding_to_proto(key, request))
        return future

    def cancel(self, key: int) -> None:
        """Aborts a request; no more output of it arrives. Ignores requests that have ended."""
        generation, embedding = self._generations.pop(key, None), self._embeddings.pop(key, None)
        if generation is not None or embedding is not None:
            self._commands.cancel(key)

    def _check_up(self) -> None:
        if not self.is_up:
            raise replica_lost(self.replica_id)

    async def _connect(self) -> None:
        """Runs one stream, from the hello to its end."""
        async with internal_channel(self._address, self._tls) as channel:
            call = EngineLinkServiceStub(channel).Connect()
            try:
                async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                    await write(call, wire.hello(self._gateway_id))
                    self._check_identity((await read(call, pb.ConnectResponse)).welcome)
                self._come_up()
                await until_one_ends(self._receive(call), self._commands.write_to(call))
            finally:
                self._go_down()
                call.cancel()

    def _check_identity(self, welcome: pb.Welcome) -> None:
        if welcome.replica_id != self.replica_id:
            _log.warning("replica_address_taken_over", address=self._address, expected=self.replica_id, found=welcome.replica_id)
            raise StreamEndedError(f"{self._address} is replica {welcome.replica_id}, not {self.replica_id}")

    def _come_up(self) -> None:
        self._backoff.reset()
        self._commands.clear()
        self._up.set()
        self._on_change(self)

    def _go_down(self) -> None:
        was_up = self.is_up
        self._up.clear()
        generations, self._generations = self._generations, {}
        embeddings, self._embeddings = self._embeddings, {}
        for key, receiver in generations.items():
            receiver.push(Delta(key, end=True, failure=replica_lost(self.replica_id)))
        for future in embeddings.values():
            _fail(future, replica_lost(self.replica_id))
        if was_up:
            self._on_change(self)

    async def _receive(self, call: "_Call") -> None:
        while True:
            response = await read(call, pb.ConnectResponse)
            if response.HasField("step"):
                self._spread(response.step)
            elif response.HasField("embedding"):
                self._answer(response.embedding)

    def _spread(self, frame: pb.StepFrame) -> None:
        receivers = self._generations
        for delta in frame.deltas:
            receiver = receivers.get(delta.key)
            if receiver is None:  # cancelled in the meantime
                continue
            if delta.end:
                del receivers[delta.key]
            receiver.push(wire.delta_from_proto(delta))

    def _answer(self, frame: pb.EmbeddingFrame) -> None:
        future = self._embeddings.pop(frame.key, None)
        if future is None or future.done():
            return
        result = wire.embedding_result_from_proto(frame)
        if isinstance(result, ServeError):
            _fail(future, result)
        else:
            future.set_result(result)


class _Call(Writable[pb.ConnectRequest], Protocol):
    """The gRPC call of a link."""

    async def read(self) -> pb.ConnectResponse | object:
        """Returns the next response, or grpc.aio.EOF."""


class _Commands:
    """Commands that wait to be sent: all commands since the last message form the next one."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self.clear()

    def clear(self) -> None:
        """Drops the commands that were meant for an earlier stream."""
        self._generations: list[pb.SubmitGeneration] = []
        self._embeddings: list[pb.SubmitEmbedding] = []
        self._cancelled: list[int] = []
        self._wake.clear()

    def generate(self, message: pb.SubmitGeneration) -> None:
        self._generations.append(message)
        self._wake.set()

    def embed(self, message: pb.SubmitEmbedding) -> None:
        self._embeddings.append(message)
        self._wake.set()

    def cancel(self, key: int) -> None:
        self._cancelled.append(key)
        self._wake.set()

    async def write_to(self, stream: Writable[pb.ConnectRequest]) -> None:
        """Writes commands until the stream ends. Raises StreamEndedError."""
        while True:
            await self._wake.wait()
            message = wire.commands(self._generations, self._embeddings, self._cancelled)
            self.clear()
            await write(stream, message)


def _fail(future: asyncio.Future[EmbeddingResult], error: ServeError) -> None:
    if not future.done():
        future.set_exception(error)
