"""An engine that does nothing by itself: the test makes every step."""

import asyncio
from collections import defaultdict
from collections.abc import Hashable

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.core.types import (
    Delta,
    DeltaSink,
    EmbeddingRequest,
    EmbeddingResult,
    EngineStats,
    Finish,
    FinishReason,
    GenerationRequest,
    SequenceDelta,
)


class ScriptedEngine:
    """Implements the Engine protocol. `refusal` is raised for every new request, and `steps` counts the calls of sinks."""

    def __init__(self, *, block_tokens: int = 0) -> None:
        self.block_ledger = BlockLedger(block_tokens) if block_tokens else None
        self.live: dict[Hashable, tuple[GenerationRequest, DeltaSink]] = {}
        self.aborted: list[Hashable] = []
        self.refusal: Exception | None = None
        self.healthy = True
        self.gate = asyncio.Event()  # after `clear`, requests wait in submission
        self.gate.set()
        self.steps = 0

    async def generate(self, key: Hashable, request: GenerationRequest, sink: DeltaSink) -> None:
        if self.refusal is not None:
            raise self.refusal
        await self.gate.wait()
        self.live[key] = (request, sink)

    async def embed(self, key: Hashable, request: EmbeddingRequest) -> EmbeddingResult:
        if self.refusal is not None:
            raise self.refusal
        return EmbeddingResult(bytes(4 * len(request.prompt_token_ids)))

    async def abort(self, key: Hashable) -> None:
        self.live.pop(key, None)
        self.aborted.append(key)

    def step(self, *, text: str = "x", end: bool = False, failure: ServeError | None = None) -> None:
        """Gives every live request one token, or its end, with one call for each sink."""
        finish = Finish(FinishReason.STOP) if end else None
        by_sink: dict[DeltaSink, list[Delta]] = defaultdict(list)
        for key, (_, sink) in self.live.items():
            sequences = () if failure else (SequenceDelta(0, text, (self.steps,), finish=finish),)
            by_sink[sink].append(Delta(key, sequences, end=end or failure is not None, failure=failure))
        if end or failure:
            self.live.clear()
        for sink, deltas in by_sink.items():
            sink(deltas)
            self.steps += 1

    def stats(self) -> EngineStats:
        return EngineStats(len(self.live), 0, 0.0, self.steps)

    async def check_health(self) -> None:
        if not self.healthy:
            raise ServeError(Reason.REPLICA_LOST, "the engine is dead")

    def metrics_text(self) -> str:
        return f"# HELP scripted_steps_total Steps.\n# TYPE scripted_steps_total counter\nscripted_steps_total {self.steps}\n"

    async def close(self) -> None:
        self.step(failure=ServeError(Reason.REPLICA_LOST, "closed"))
