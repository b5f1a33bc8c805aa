"""Collects the deltas of one engine step, so that each sink is called once per step."""

import asyncio
from collections.abc import Hashable

from neox_serve.core.types import Delta, DeltaSink


class StepBuffer:
    """The deltas of the current step by sink, in order. It may be used on one event loop only."""

    def __init__(self) -> None:
        self._deltas: dict[DeltaSink, list[Delta]] = {}

    def add(self, sink: DeltaSink, delta: Delta) -> None:
        """Keeps a delta until the next flush."""
        batch = self._deltas.get(sink)
        if batch is None:
            self._deltas[sink] = [delta]
        else:
            batch.append(delta)

    def discard(self, sink: DeltaSink, key: Hashable) -> None:
        """Drops the deltas of a request that was aborted during the step."""
        if batch := self._deltas.get(sink):
            batch[:] = [delta for delta in batch if delta.key != key]

    def flush(self) -> None:
        """Calls each sink once with its deltas. An exception of a sink is reported to the event loop; the other sinks are still called."""
        deltas, self._deltas = self._deltas, {}
        for sink, batch in deltas.items():
            if batch:
                _deliver(sink, batch)


def _deliver(sink: DeltaSink, batch: list[Delta]) -> None:
    try:
        sink(batch)
    except Exception as error:  # noqa: BLE001 - a bug of one consumer must not stop the engine's step
        asyncio.get_running_loop().call_exception_handler({"message": "a delta sink failed", "exception": error})
