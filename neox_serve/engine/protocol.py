"""What the rest of the system knows of an engine. The fake and the vLLM engine pass one contract suite (tests/contract).

A request's life in an engine: `generate` admits it; then its deltas arrive at the sink, step by step; its last delta has `end` set,
exactly once, with or without a failure. After `abort`, no further delta of that key arrives. One call of the sink carries everything
that one engine step brought for that sink, so a sink that writes to a link writes one frame per step.
"""

from collections.abc import Hashable
from typing import Protocol

from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.core.types import (
    DeltaSink,
    EmbeddingRequest,
    EmbeddingResult,
    EngineStats,
    GenerationRequest,
)


class Engine(Protocol):
    """Runs one model on its accelerators."""

    @property
    def block_ledger(self) -> BlockLedger | None:
        """What its prefix cache holds; None where it does not say."""

    async def generate(self, key: Hashable, request: GenerationRequest, sink: DeltaSink) -> None:
        """Admits a request; returns once it is queued. `key` is unique among the engine's live requests.

        Raises ServeError: INVALID_ARGUMENT where the engine refuses a parameter (a structured output that does not compile, say),
        UNKNOWN_ADAPTER, REPLICA_LOST where the engine is dead. Then no delta follows.
        """

    async def embed(self, key: Hashable, request: EmbeddingRequest) -> EmbeddingResult:
        """Returns the vector of an input. Raises ServeError.

        Cancelling the call, or `abort(key)` (which raises CANCELLED in it), frees its resources."""

    async def abort(self, key: Hashable) -> None:
        """Frees a request's resources; unknown keys are ignored. No delta of the key arrives after this is called."""

    def stats(self) -> EngineStats:
        """The engine's load, as of its last step."""

    async def check_health(self) -> None:
        """Raises ServeError(REPLICA_LOST) where the engine can serve no more requests."""

    def metrics_text(self) -> str:
        """The engine's own metrics in Prometheus' text format; empty where it has none."""

    async def close(self) -> None:
        """Stops the engine and its workers. Requests still running end with REPLICA_LOST."""
