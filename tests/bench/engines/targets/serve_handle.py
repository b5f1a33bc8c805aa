"""A Ray Serve deployment, called through its handle with streaming: how Serve applications call each other."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from neox_serve.core.types import TokenIds
from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets import Stamp, Target
from neox_serve.loadgen.workloads import Prompt

APPLICATION = "bench-fake"
DEPLOYMENT = "FakeStreams"


@dataclass(frozen=True, slots=True)
class ServeHandleSpec:
    """ray_address: of the cluster's GCS."""

    ray_address: str

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Joins the cluster as a driver of its own."""
        import ray
        from ray import serve

        ray.init(address=self.ray_address, log_to_driver=False, logging_level="error")
        try:
            yield ServeHandleTarget(serve.get_deployment_handle(DEPLOYMENT, APPLICATION).options(stream=True))
        finally:
            ray.shutdown()


class ServeHandleTarget:
    """Streams of the deployment's `stream` method."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """One call. Raises Ray's errors."""
        async for token_ids in self._handle.stream.remote(prompt, output_tokens):
            stamp(token_ids)

    def decode(self, stamped: Sequence[tuple[float, TokenIds]]) -> Response:
        """One arrival an item."""
        return Response([Arrival(at_s, tuple(token_ids)) for at_s, token_ids in stamped])
