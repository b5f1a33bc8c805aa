"""A Ray cluster with one Serve deployment that contains the fake engine.

`python -m tests.bench.engines.serve_handle_host <settings.json> <address file>` runs until SIGTERM. Ray and Serve are configured as
neox-serve configures them, but requests and tokens go through deployment handles.
"""

import json
import signal
import sys
import threading
from asyncio import Queue
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve

from neox_serve.core.types import Delta, GenerationRequest, Pool, Sampling, Stopping
from neox_serve.engine.factory import start_engine
from neox_serve.settings import Settings, restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.engines.targets.serve_handle import APPLICATION, DEPLOYMENT


class FakeStreams:
    """Streams the fake engine's tokens to callers of its handle."""

    async def __init__(self, settings_values: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._engine = await start_engine(PoolEngineSettings.from_settings(restore(settings_values), Pool.GENERATION))
        self._requests = 0

    async def stream(self, prompt: tuple[int, ...], output_tokens: int) -> AsyncIterator[tuple[int, ...]]:
        """Yields the token ids of each delta."""
        self._requests += 1
        key, deltas = self._requests, Queue[Delta]()

        def sink(batch: Sequence[Delta]) -> None:
            for delta in batch:
                deltas.put_nowait(delta)

        request = GenerationRequest(str(key), prompt, Stopping(output_tokens, ignore_eos=True), Sampling(temperature=0.0))
        await self._engine.generate(key, request, sink)
        ended = False
        while not ended:
            delta = await deltas.get()
            ended = delta.end
            yield delta.sequences[0].token_ids


def deploy(settings: Settings) -> str:
    """Starts Ray and the deployment, and returns the address of the GCS."""
    context = ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=settings.ray.object_store_bytes,
    )
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(FakeStreams).options(
        name=DEPLOYMENT, num_replicas=1, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )
    serve.run(deployment.bind(settings.model_dump(mode="json")), name=APPLICATION, route_prefix=None)
    return str(context.address_info["gcs_address"])


def main() -> None:
    """Starts the deployment, writes the address, and waits for SIGTERM."""
    settings_file, address_file = map(Path, sys.argv[1:3])
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        address = deploy(restore(json.loads(settings_file.read_text(encoding="utf-8"))))
        partial = address_file.with_suffix(".new")
        partial.write_text(address, encoding="utf-8")
        partial.replace(address_file)
        while not stopped.wait(1.0):
            pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
