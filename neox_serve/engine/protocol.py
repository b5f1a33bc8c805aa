"""The interface of an engine. The vLLM engine and the fake engine pass the same contract suite (tests/contract).

Life of a request in an engine: `generate` admits it. Then its deltas arrive at the sink, step by step. Exactly one delta, the last, has
`end` set, with or without a failure. After `abort`, no further delta of that key arrives. One call of a sink carries all deltas that one
engine step produced for that sink, so a sink that writes to a link writes one frame per step.
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
        """The content of the prefix cache; None if the engine does not report it."""

    async def generate(self, key: Hashable, request: GenerationRequest, sink: DeltaSink) -> None:
        """Admits a request and returns once it is queued. `key` must be unique among the engine's live requests.

        Raises ServeError, in which case no delta follows: INVALID_ARGUMENT if the engine rejects a parameter (for example a structured
        output that does not compile), UNKNOWN_ADAPTER, or REPLICA_LOST if the engine is dead.
        """

    async def embed(self, key: Hashable, request: EmbeddingRequest) -> EmbeddingResult:
        """Returns the vector of an input. Raises ServeError.

        Cancelling the call frees its resources. So does `abort(key)`, after which the call raises CANCELLED.
        """

    async def abort(self, key: Hashable) -> None:
        """Frees a request's resources. Unknown keys are ignored. No delta of the key arrives after this call."""

    def stats(self) -> EngineStats:
        """Returns the engine's load after its last step."""

    async def check_health(self) -> None:
        """Raises ServeError(REPLICA_LOST) if the engine cannot serve requests any more."""

    def metrics_text(self) -> str:
        """Returns the engine's own metrics in Prometheus' text format; empty if it has none."""

    async def close(self) -> None:
        """Stops the engine and its workers. Requests still running end with REPLICA_LOST."""
