"""A dispatcher whose output is scripted: the test decides what each request gets, and when.

It records what a test asks about: which requests were opened, which still run, and when each was freed.
"""

import asyncio
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from neox_serve.core.cluster import ClusterView, Demand, Terms
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.types import (
    Delta,
    DirectSink,
    EmbeddingRequest,
    EmbeddingResult,
    Finish,
    FinishReason,
    GenerationRequest,
    Pool,
    PromptFacts,
    SequenceDelta,
)


@dataclass(frozen=True, slots=True)
class Script:
    """The output of a request."""

    tokens: int | None = 3
    """Tokens per sequence; None: as many as the request allows."""
    text: str = " x"
    """Text of each token."""
    first_s: float = 0.0
    """Seconds until the first token."""
    interval_s: float = 0.0
    """Seconds between tokens."""
    silent: bool = False
    """Whether there is never any output."""
    gate: asyncio.Event | None = None
    """There is no output before it is set."""
    failure: ServeError | None = None
    """Raised instead of the token with index `fails_at`."""
    fails_at: int = 0
    admission_s: float = 0.0
    refusal: ServeError | None = None
    predicted_cached_tokens: int | None = None


class ScriptedStream:
    """A generation that follows a script."""

    def __init__(self, request: GenerationRequest, script: Script, on_freed: Callable[["ScriptedStream"], None]) -> None:
        self.request = request
        self.admission_s = script.admission_s
        self.replica_id = "scripted"
        self.gaps_s: list[float] = []
        self.explanation = "policy=scripted"
        self.predicted_cached_tokens: int | None = script.predicted_cached_tokens
        self.pending: list[Delta] = []
        self._freed = False
        self._on_freed = on_freed
        self._failure: ServeError | None = None
        self._news = asyncio.Event()
        self._producer = asyncio.ensure_future(self._produce(script))

    async def next(self, direct: DirectSink | None = None, /) -> Sequence[Delta]:
        """See the protocol."""
        self._direct = direct
        try:
            await self._news.wait()
        finally:
            self._direct = None
        if self.pending:
            self._news.clear()
            if self._failure is not None:
                self._news.set()
            deltas, self.pending = self.pending, []
            return deltas
        if self._failure is None:
            raise ServeError(Reason.CANCELLED, "cancelled")
        raise self._failure

    def cancel(self) -> None:
        """See the protocol."""
        self._producer.cancel()
        self._free()
        self._news.set()

    async def _produce(self, script: Script) -> None:
        try:
            await self._emit(script)
        except ServeError as failure:
            self._failure = failure
        self._free()
        self._news.set()

    async def _emit(self, script: Script) -> None:
        if script.silent:
            await asyncio.Event().wait()
        if script.gate is not None:
            await script.gate.wait()
        request = self.request
        sequences = request.beam.num_return if request.beam else request.n
        count = request.stopping.max_tokens if script.tokens is None else min(script.tokens, request.stopping.max_tokens)
        await asyncio.sleep(script.first_s)
        for position in range(count):
            if script.failure is not None and position == script.fails_at:
                raise script.failure
            last = position == count - 1
            finish = Finish(FinishReason.LENGTH if count == request.stopping.max_tokens else FinishReason.STOP) if last else None
            score = -0.5 if request.beam and last else None
            news = tuple(SequenceDelta(index, script.text, (position,), finish=finish, score=score) for index in range(sequences))
            prompt = PromptFacts(cached_tokens=1) if position == 0 else None
            delta = Delta(request.request_id, news, prompt, end=last)
            if last or self.pending or self._direct is None or not self._direct(delta):
                self.pending.append(delta)
                self._news.set()
            if not last:
                await asyncio.sleep(script.interval_s)

    def _free(self) -> None:
        if not self._freed:
            self._freed = True
            self._on_freed(self)


@dataclass(slots=True)
class Reserved:
    """A call's reservation. used_tokens: what it was settled with; None if it is open."""

    tenant: str
    tokens: int
    used_tokens: int | None = None

    def settle(self, used_tokens: int) -> None:
        """See the protocol."""
        if self.used_tokens is None:
            self.used_tokens = used_tokens


@dataclass(slots=True)
class ScriptedDispatcher:
    """Runs every request by `script`, or by an entry of `scripts`, whose keys are first prompt token ids."""

    script: Script = Script()
    scripts: dict[int, Script] = field(default_factory=dict)
    router_connected: bool = True
    ready: dict[Pool, int] = field(default_factory=lambda: {Pool.GENERATION: 1, Pool.EMBEDDING: 1})
    view: ClusterView = field(default_factory=lambda: ClusterView((), (), from_router=True))
    opened: list[GenerationRequest] = field(default_factory=list)
    embedded: list[EmbeddingRequest] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)
    live: set[ScriptedStream] = field(default_factory=set)
    live_embeddings: int = 0
    reserved: list["Reserved"] = field(default_factory=list)
    quota_refusal: ServeError | None = None
    drained: list[str] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    estimated: tuple[float | None, QuotaState] = (0.0, QuotaState(0, 0, 0, 0, 0))

    def ready_replicas(self, pool: Pool) -> int:
        """See the protocol."""
        return self.ready[pool]

    def may_wake(self, pool: Pool) -> bool:
        """See the protocol."""
        return False

    async def reserve(self, tenant: Tenant, tokens: int) -> "Reserved":
        """See the protocol."""
        if self.quota_refusal is not None:
            raise self.quota_refusal
        self.reserved.append(Reserved(tenant.name, tokens))
        return self.reserved[-1]

    async def estimate(self, demand: Demand, timeout_s: float) -> tuple[float | None, QuotaState]:
        """See the protocol."""
        self.terms.append(demand.terms)
        return self.estimated

    async def open_generation(self, model: str, request: GenerationRequest, terms: Terms) -> ScriptedStream:
        """See the protocol."""
        self.terms.append(terms)
        script = self.scripts.get(request.prompt_token_ids[0], self.script)
        self.opened.append(request)
        await asyncio.sleep(script.admission_s)
        if script.refusal is not None:
            raise script.refusal
        stream = ScriptedStream(request, script, self.live.discard)
        self.live.add(stream)
        self.streams.append(stream)
        return stream

    async def embed(self, model: str, request: EmbeddingRequest, terms: Terms) -> EmbeddingResult:
        """See the protocol."""
        self.terms.append(terms)
        script = self.scripts.get(request.prompt_token_ids[0], self.script)
        self.embedded.append(request)
        self.live_embeddings += 1
        try:
            await asyncio.sleep(1e9 if script.silent else script.first_s)
            if script.failure is not None:
                raise script.failure
        finally:
            self.live_embeddings -= 1
        return EmbeddingResult(array("f", [0.6, 0.8]).tobytes(), cached_tokens=1)

    def drain_replica(self, replica_id: str) -> None:
        """See the protocol."""
        self.drained.append(replica_id)

    async def cluster_view(self, timeout_s: float) -> ClusterView:
        """See the protocol."""
        return self.view
