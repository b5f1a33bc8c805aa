"""A token stream with fewer and larger chunks: the asynchronous shell of the coalescer. It reads every step, so it sees an end at once."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from neox_serve.core.errors import ServeError
from neox_serve.core.types import Delta, DirectSink
from neox_serve.gateway.dispatch.protocol import TokenStream
from neox_serve.gateway.requests.coalescing import ChunkPolicy, Coalescer
from neox_serve.gateway.server.deadlines import Expired
from neox_serve.v1 import inference_service_pb2

Wait = Callable[[Awaitable[Sequence[Delta]]], Awaitable[Sequence[Delta]]]
"""Awaits, and raises Expired if the deadline of the call comes first."""


def coalesced(stream: TokenStream, options: inference_service_pb2.StreamOptions, wait: Wait) -> TokenStream:
    """Returns the stream with the chunk policy of the options, or the stream itself if they set none."""
    policy = ChunkPolicy(options.min_chunk_interval.ToNanoseconds() / 1e9, max(1, options.min_chunk_tokens))
    return CoalescedStream(stream, policy, wait) if policy.delays_chunks else stream


class CoalescedStream:
    """A TokenStream that holds the deltas of another one until they are due.

    If the deadline or a failure comes, `next` first returns the deltas that are held, and raises in the next call.
    """

    def __init__(self, stream: TokenStream, policy: ChunkPolicy, wait: Wait) -> None:
        self._stream = stream
        self._coalescer = Coalescer(policy)
        self._wait = wait
        self._clock = asyncio.get_running_loop().time

    @property
    def admission_s(self) -> float:
        """See the protocol."""
        return self._stream.admission_s

    @property
    def replica_id(self) -> str:
        """See the protocol."""
        return self._stream.replica_id

    @property
    def gaps_s(self) -> Sequence[float]:
        """See the protocol."""
        return self._stream.gaps_s

    @property
    def explanation(self) -> str:
        """See the protocol."""
        return self._stream.explanation

    @property
    def predicted_cached_tokens(self) -> int | None:
        """See the protocol."""
        return self._stream.predicted_cached_tokens

    async def next(self, _direct: DirectSink | None = None, /) -> Sequence[Delta]:
        """See the protocol. Does not use `direct`. Raises Expired at the deadline, or ServeError."""
        try:
            return await self._wait(self._due())
        except (Expired, ServeError):
            if rest := self._coalescer.release(math.inf):
                return rest
            raise

    def cancel(self) -> None:
        """See the protocol."""
        self._stream.cancel()

    async def _due(self) -> Sequence[Delta]:
        """Reads until deltas are due. Each chunk has one timer, set when its first delta arrives and not moved by later ones."""
        coalescer = self._coalescer
        due_at_s = coalescer.due_at_s
        try:
            async with asyncio.timeout_at(None if due_at_s == math.inf else due_at_s) as timer:
                while True:
                    coalescer.take(await self._stream.next())
                    if due := coalescer.release(self._clock()):
                        return due
                    if coalescer.due_at_s != due_at_s:
                        due_at_s = coalescer.due_at_s
                        timer.reschedule(due_at_s)
        except TimeoutError:
            return coalescer.release(max(due_at_s, self._clock()))  # the event loop may fire a timer slightly early
