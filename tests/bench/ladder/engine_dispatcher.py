"""A dispatcher with the engine in the gateway's process, to measure the gateway without a link or a router."""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import count

from neox_serve.core.cluster import ClusterView, Demand, Terms
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.types import Delta, DirectSink, EmbeddingRequest, EmbeddingResult, GenerationRequest, Pool
from neox_serve.engine.protocol import Engine
from neox_serve.gateway.dispatch.reservations import OpenReservation


class EngineStream:
    """Implements `neox_serve.gateway.dispatch.protocol.TokenStream`. `on_cancel` aborts the request in the engine."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self._on_cancel = on_cancel
        self._deltas: list[Delta] = []
        self._news = asyncio.Event()
        self._ended = False
        self.admission_s = 0.0
        self.replica_id = "engine"
        self.gaps_s: list[float] = []
        self.explanation = ""
        self.predicted_cached_tokens: int | None = None

    async def next(self, _direct: DirectSink | None = None, /) -> Sequence[Delta]:
        """Waits for deltas and returns all since the previous call. Raises ServeError if the request failed."""
        await self._news.wait()
        self._news.clear()
        deltas, self._deltas = self._deltas, []
        if (failure := deltas[-1].failure) is not None:
            raise failure
        return deltas

    def push(self, delta: Delta) -> None:
        """Adds a delta from the engine."""
        self._ended |= delta.end
        self._deltas.append(delta)
        self._news.set()

    def cancel(self) -> None:
        """Aborts the request in the engine unless it has ended."""
        if not self._ended:
            self._ended = True
            self._on_cancel()


class EngineDispatcher:
    """Implements `neox_serve.gateway.dispatch.protocol.Dispatcher`, with the engine as its only replica."""

    router_connected = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys = count(1)
        self._streams: dict[Hashable, EngineStream] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        # Always the same object, because the engine groups the deltas of a step by sink.
        self._sink = self._take

    def ready_replicas(self, pool: Pool) -> int:
        """Returns 1 for the generation pool."""
        return int(pool is Pool.GENERATION)

    def may_wake(self, pool: Pool) -> bool:
        """Returns False, because no pool scales to zero."""
        return False

    async def reserve(self, _tenant: Tenant, _tokens: int) -> OpenReservation:
        """Returns a reservation without a quota."""
        return OpenReservation(lambda _used: None)

    async def estimate(self, _demand: Demand, timeout_s: float) -> tuple[float | None, QuotaState]:
        """Returns no queue wait and no quota."""
        return 0.0, QuotaState(0, 0, 0, 0, 0)

    async def open_generation(self, _model: str, request: GenerationRequest, _terms: Terms) -> EngineStream:
        """Pass the request to the engine. Raises ServeError if the engine rejects it."""
        key, started_s = next(self._keys), time.monotonic()
        stream = self._streams[key] = EngineStream(lambda: self._abort(key))
        try:
            await self._engine.generate(key, request, self._sink)
        except BaseException:
            del self._streams[key]
            raise
        stream.admission_s = time.monotonic() - started_s
        return stream

    async def embed(self, _model: str, request: EmbeddingRequest, _terms: Terms) -> EmbeddingResult:
        """Returns the engine's embedding. Raises ServeError if the request fails."""
        return await self._engine.embed(next(self._keys), request)

    def drain_replica(self, _replica_id: str) -> None:
        """Do nothing, because there is no other replica."""

    async def cluster_view(self, timeout_s: float) -> ClusterView:
        """Returns an empty cluster."""
        return ClusterView((), (), from_router=False)

    def _take(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            stream = self._streams.pop(delta.key, None) if delta.end else self._streams.get(delta.key)
            if stream is not None:
                stream.push(delta)

    def _abort(self, key: int) -> None:
        self._streams.pop(key, None)
        task = asyncio.ensure_future(self._engine.abort(key))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)
