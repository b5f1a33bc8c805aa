"""The closed loop: k callers, each asking anew when its answer is whole. It stamps what arrives and looks at it only afterwards."""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from neox_serve.loadgen.records import Record, TokenIds, record
from neox_serve.loadgen.targets import Stamped, Target
from neox_serve.loadgen.workloads import Workload


@dataclass(slots=True)
class _Raw:
    """One request as it came, not yet decoded."""

    prompt_tokens: int
    intended_s: float
    stamped: Stamped = field(default_factory=list)
    end_s: float = 0.0
    error: str | None = None


class ClosedLoop:
    """One run of a workload. `run`, then `records`. on_progress is told how many requests have ended, whenever one does."""

    def __init__(self, workload: Workload, target: Target, on_progress: Callable[[int], None]) -> None:
        self._workload = workload
        self._target = target
        self._on_progress = on_progress
        self._waiting: deque[tuple[_Raw, TokenIds]] = deque()
        self._raw: list[_Raw] = []
        self._ended = 0

    async def run(self) -> None:
        """Sends everything and returns when all of it has ended. A request that fails is a record with an error."""
        prompts = list(self._workload.prompts())
        self._raw = [_Raw(len(prompt), 0.0) for prompt in prompts]
        self._waiting.extend(zip(self._raw, prompts, strict=True))
        with _no_garbage_collection():
            start_s = time.monotonic()
            await asyncio.gather(*(self._stream(start_s) for _ in range(self._workload.streams)))

    def records(self) -> list[Record]:
        """One record a prompt, in the order of the prompts."""
        return [self._record(raw) for raw in self._raw]

    def _record(self, raw: _Raw) -> Record:
        """What cannot be decoded is a failure of its request."""
        try:
            arrivals, error = self._target.decode(raw.stamped), raw.error
        except ValueError as undecodable:
            arrivals, error = [], raw.error or str(undecodable)
        return record(raw.prompt_tokens, raw.intended_s, arrivals, raw.end_s, error)

    async def _stream(self, intended_s: float) -> None:
        while self._waiting:
            raw, prompt = self._waiting.popleft()
            raw.intended_s = intended_s
            await self._ask(raw, prompt)
            raw.end_s = intended_s = time.monotonic()
            self._ended += 1
            self._on_progress(self._ended)

    async def _ask(self, raw: _Raw, prompt: TokenIds) -> None:
        stamped, clock = raw.stamped, time.monotonic

        def stamp(payload: Any) -> None:
            stamped.append((clock(), payload))

        try:
            await self._target.send(prompt, self._workload.output_tokens, stamp)
        except Exception as error:  # noqa: BLE001 - whatever a client library raises is this request's outcome
            raw.error = f"{type(error).__name__}: {error}"[:500]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The client's own pauses must not be counted against a server."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
