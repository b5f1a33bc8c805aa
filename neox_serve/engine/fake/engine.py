"""An engine without a model: real timing, made-up tokens, and failures on demand.

It behaves like a batching engine. A request waits `ttft_s`. Then every step produces one token for each sequence of each running request,
and all deltas of a step for the same sink are sent in one call. Steps follow an absolute schedule: a late step does not delay the next one.
Tokens depend only on the request, so the same request gives the same tokens in any batch.

The clock is an argument: with a virtual clock a minute of streaming takes milliseconds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Hashable
from dataclasses import dataclass, field, replace

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.core.types import (
    Delta,
    DeltaSink,
    EmbeddingRequest,
    EmbeddingResult,
    EngineStats,
    GenerationRequest,
    SequenceDelta,
)
from neox_serve.engine import structured_outputs
from neox_serve.engine.fake import outputs
from neox_serve.engine.fake.cache import FakeCache
from neox_serve.engine.fake.outputs import FakeOutput, Vocabulary
from neox_serve.engine.step_buffer import StepBuffer


@dataclass(frozen=True, slots=True)
class FakeTiming:
    """The engine's timing."""

    ttft_s: float = 0.02
    """Time from admission to the first token."""
    itl_s: float = 0.02
    """Time between two tokens at batch size 1."""
    itl_per_request_s: float = 0.0
    """Time that each further request in the batch adds to `itl_s`."""

    def step_s(self, running: int) -> float:
        """Returns the duration of a step with this many running requests: at least a microsecond, so that time advances."""
        return max(1e-6, self.itl_s + self.itl_per_request_s * max(0, running - 1))


@dataclass(frozen=True, slots=True)
class Clock:
    """The source of time."""

    now_s: Callable[[], float] = time.monotonic
    """Returns seconds since any origin."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits for a number of seconds."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure to inject."""

    error: ServeError
    after_tokens: int | None = None
    """Number of output tokens per sequence before the failure; None: the request is not admitted."""


Faults = Callable[[GenerationRequest], Fault | None]
"""Returns the failure of a request; None if it should succeed."""


def no_faults(_request: GenerationRequest) -> Fault | None:
    """Returns None: no request fails."""
    return None


@dataclass(slots=True)
class _Live:
    """A request in the engine."""

    key: Hashable
    sink: DeltaSink
    output: FakeOutput
    due_s: float
    """Earliest time of the first token."""
    fault: Fault | None
    cached_tokens: int = 0
    steps: int = 0
    prompt_sent: bool = False
    """Whether a delta with the prompt's facts was sent."""


@dataclass(slots=True)
class _Load:
    waiting: dict[Hashable, _Live] = field(default_factory=dict)
    running: dict[Hashable, _Live] = field(default_factory=dict)
    embeddings: dict[Hashable, "asyncio.Future[None]"] = field(default_factory=dict)
    output_tokens_total: int = 0


class FakeEngine:
    """Implements `neox_serve.engine.protocol.Engine`.

    Without a `cache`, the engine has no prefix cache to report. With `timestamp_text`, the text of each token is the time of its step, in
    seconds of the clock.
    """

    def __init__(
        self,
        timing: FakeTiming = FakeTiming(),
        *,
        vocabulary: Vocabulary = Vocabulary(),  # noqa: B008 - frozen
        adapters: Container[str] = frozenset(),
        max_num_seqs: int = 4096,
        faults: Faults = no_faults,
        clock: Clock = Clock(),
        cache: FakeCache | None = None,
        timestamp_text: bool = False,
    ) -> None:
        self._timing = timing
        self._vocabulary = vocabulary
        self._adapters = adapters
        self._max_num_seqs = max_num_seqs
        self._faults = faults
        self._clock = clock
        self._cache = cache
        self._timestamp_text = timestamp_text
        self._load = _Load()
        self._step_buffer = StepBuffer()
        self._alive = True
        self._step_at_s = 0.0
        self._work = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def block_ledger(self) -> BlockLedger | None:
        """The content of the prefix cache; None without a cache."""
        return self._cache.ledger if self._cache else None

    async def generate(self, key: Hashable, request: GenerationRequest, sink: DeltaSink) -> None:
        """Queues the request. Raises ServeError."""
        await self.check_health()
        self._check(request.adapter)
        if request.structured_output is not None:
            structured_outputs.check_syntax(request.structured_output)
        fault = self._faults(request)
        if fault is not None and fault.after_tokens is None:
            raise fault.error
        due_s = self._clock.now_s() + self._timing.ttft_s
        self._load.waiting[key] = _Live(key, sink, outputs.output_of(request, self._vocabulary), due_s, fault)
        self._work.set()
        if self._loop_task is None:
            self._loop_task = asyncio.get_running_loop().create_task(self._run())

    async def embed(self, key: Hashable, request: EmbeddingRequest) -> EmbeddingResult:
        """Returns a vector that depends on token ids and pooling, after `ttft_s`."""
        await self.check_health()
        wait = asyncio.ensure_future(self._clock.sleep(self._timing.ttft_s))
        self._load.embeddings[key] = wait
        try:
            await asyncio.wait({wait})
        finally:
            wait.cancel()
            self._load.embeddings.pop(key, None)
        await self.check_health()
        if wait.cancelled():
            raise ServeError(Reason.CANCELLED, "the request was aborted")
        return outputs.embedding(request, self._vocabulary)

    async def abort(self, key: Hashable) -> None:
        """Drops the request."""
        self._load.waiting.pop(key, None)
        self._load.running.pop(key, None)
        if wait := self._load.embeddings.get(key):
            wait.cancel()

    def stats(self) -> EngineStats:
        """Returns the load after the last step."""
        load = self._load
        used = sum(live.output.prompt_tokens + live.steps for live in load.running.values())
        return EngineStats(
            running_requests=len(load.running) + len(load.embeddings),
            waiting_requests=len(load.waiting),
            kv_usage_fraction=min(1.0, used / self._vocabulary.kv_capacity_tokens),
            output_tokens_total=load.output_tokens_total,
            prefill_backlog_tokens=sum(live.output.prompt_tokens for live in load.waiting.values()),
        )

    async def check_health(self) -> None:
        """Raises REPLICA_LOST after `die` or `close`."""
        if not self._alive:
            raise _lost()

    def metrics_text(self) -> str:
        """Returns one counter, so that there is something to merge with other replicas' metrics."""
        return (
            "# HELP neox_serve_fake_engine_output_tokens_total Output tokens since the engine was started.\n"
            "# TYPE neox_serve_fake_engine_output_tokens_total counter\n"
            f"neox_serve_fake_engine_output_tokens_total {self._load.output_tokens_total}\n"
        )

    def die(self) -> None:
        """Simulates the death of the engine's process: all requests end with REPLICA_LOST, and new ones are rejected."""
        self._alive = False
        lost = [*self._load.running.values(), *self._load.waiting.values()]
        self._load.running.clear()
        self._load.waiting.clear()
        for live in lost:
            self._step_buffer.add(live.sink, Delta(live.key, end=True, failure=_lost()))
        self._step_buffer.flush()
        for wait in self._load.embeddings.values():
            wait.cancel()

    async def close(self) -> None:
        """Ends all requests with REPLICA_LOST and stops the step loop."""
        if self._alive:
            self.die()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait({self._loop_task})

    def _check(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise ServeError(Reason.UNKNOWN_ADAPTER, f"adapter {adapter!r} is not served", {"adapter": adapter})

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._step_at_s = self._next_step_s()
            await self._clock.sleep(max(0.0, self._step_at_s - self._clock.now_s()))
            self._step()
            if not self._load.running and not self._load.waiting:
                self._work.clear()

    def _next_step_s(self) -> float:
        """Returns the time of the next step.

        If requests run, it is one step duration after the scheduled time of the last step; otherwise it is when a waiting request is due.
        """
        if self._load.running:
            return self._step_at_s + self._timing.step_s(len(self._load.running))
        return min((live.due_s for live in self._load.waiting.values()), default=self._step_at_s)

    def _step(self) -> None:
        self._start_due_requests()
        stamp = f"{self._clock.now_s():.6f} " if self._timestamp_text else None
        for live in tuple(self._load.running.values()):
            delta = self._advance(live, stamp)
            if delta.end:
                del self._load.running[live.key]
            if delta.sequences or delta.end:
                self._step_buffer.add(live.sink, delta)
        self._step_buffer.flush()

    def _start_due_requests(self) -> None:
        load = self._load
        due = [live for live in load.waiting.values() if live.due_s <= self._step_at_s]
        for live in due[: max(0, self._max_num_seqs - len(load.running))]:
            load.running[live.key] = load.waiting.pop(live.key)
            if self._cache is not None:
                live.cached_tokens = self._cache.serve(live.output.request)

    def _advance(self, live: _Live, stamp: str | None) -> Delta:
        if live.fault is not None and live.steps == live.fault.after_tokens:
            return Delta(live.key, end=True, failure=live.fault.error)
        live.steps += 1
        sequences, ended = live.output.step()
        if stamp is not None:
            sequences = _with_timestamps(sequences, stamp)
        prompt = live.output.prompt(live.cached_tokens) if sequences and not live.prompt_sent else None
        live.prompt_sent |= bool(sequences)
        for sequence in sequences:
            self._load.output_tokens_total += len(sequence.token_ids)
        return Delta(live.key, sequences, prompt, end=ended)


def _with_timestamps(sequences: tuple[SequenceDelta, ...], stamp: str) -> tuple[SequenceDelta, ...]:
    """Returns the same tokens with a timestamp each as their text."""
    return tuple([replace(sequence, text=stamp * len(sequence.token_ids)) for sequence in sequences])


def _lost() -> ServeError:
    return ServeError(Reason.REPLICA_LOST, "the engine has stopped")
