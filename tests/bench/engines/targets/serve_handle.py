"""A Ray Serve deployment, called through its handle with streaming, as Serve applications call each other."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from neox_serve.core.types import TokenIds
from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets import Stamp, Target
from neox_serve.loadgen.workloads import Prompt

APPLICATION = "bench-fake"
"""Name of the Serve application."""
DEPLOYMENT = "FakeStreams"
"""Name of the Serve deployment."""


@dataclass(frozen=True, slots=True)
class ServeHandleSpec:
    """Specification of a ServeHandleTarget."""

    ray_address: str
    """Address of the cluster's GCS."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Connects to the cluster as a separate driver."""
        import ray
        from ray import serve

        ray.init(address=self.ray_address, log_to_driver=False, logging_level="error")
        try:
            yield ServeHandleTarget(serve.get_deployment_handle(DEPLOYMENT, APPLICATION).options(stream=True))
        finally:
            ray.shutdown()


class ServeHandleTarget:
    """Streams from the deployment's `stream` method."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Makes one call. Raises Ray's exceptions."""
        async for token_ids in self._handle.stream.remote(prompt, output_tokens):
            stamp(token_ids)

    def decode(self, stamped: Sequence[tuple[float, TokenIds]]) -> Response:
        """Returns one arrival for each item."""
        return Response([Arrival(at_s, tuple(token_ids)) for at_s, token_ids in stamped])
