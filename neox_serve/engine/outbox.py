"""Where an engine step's deltas wait for the end of the step, to leave in one call a sink."""

import asyncio
from collections.abc import Hashable

from neox_serve.core.types import Delta, DeltaSink


class Outbox:
    """Deltas by sink, in order. Used on one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[DeltaSink, list[Delta]] = {}

    def add(self, sink: DeltaSink, delta: Delta) -> None:
        """Keeps a delta for the next flush."""
        batch = self._waiting.get(sink)
        if batch is None:
            self._waiting[sink] = [delta]
        else:
            batch.append(delta)

    def discard(self, sink: DeltaSink, key: Hashable) -> None:
        """Drops what waits for a request, which was aborted within the step."""
        if batch := self._waiting.get(sink):
            batch[:] = [delta for delta in batch if delta.key != key]

    def flush(self) -> None:
        """Calls each sink once. A sink that raises is reported to the event loop and does not keep the others from their deltas."""
        waiting, self._waiting = self._waiting, {}
        for sink, batch in waiting.items():
            if batch:
                _deliver(sink, batch)


def _deliver(sink: DeltaSink, batch: list[Delta]) -> None:
    try:
        sink(batch)
    except Exception as error:  # noqa: BLE001 - one consumer's bug must not stop the engine's step for all
        asyncio.get_running_loop().call_exception_handler({"message": "a delta sink failed", "exception": error})
