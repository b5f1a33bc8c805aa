"""Runs a load on a target, as a closed or an open loop. Payloads are time-stamped on arrival and decoded after the run."""

import asyncio
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from neox_serve.loadgen.arrivals import ClosedLoop
from neox_serve.loadgen.load import Load, Scheduled, scheduled
from neox_serve.loadgen.records import Outcome, Record, Response, record
from neox_serve.loadgen.targets import Stamped, Target, TargetError
from neox_serve.loadgen.workloads import Prompt, Request

_ERROR_CHARACTERS = 500
"""Maximum length of a recorded error message."""


@dataclass(slots=True)
class _Raw:
    """The undecoded record of one request."""

    prompt: Prompt
    intended_s: float
    sent_s: float
    stamped: Stamped = field(default_factory=list)
    end_s: float | None = None
    """None while the request runs."""
    error: str | None = None


class Runner:
    """One run of a load. Call `run`, then `outcome`."""

    def __init__(self, load: Load, target: Target, on_progress: Callable[[int], None]) -> None:
        """on_progress: called with the number of requests that have ended whenever one ends."""
        self._load = load
        self._target = target
        self._on_progress = on_progress
        self._raw: list[_Raw] = []
        self._ended = 0
        self._running: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Sends all requests and returns when they have ended. A failed request becomes a record with an error."""
        self._running = asyncio.ensure_future(self._prepared())
        with _no_garbage_collection():
            await asyncio.wait([self._running])
        if not self._running.cancelled():
            self._running.result()

    def interrupt(self) -> None:
        """Ends the run now: no more requests are sent, and those in flight are cancelled."""
        if self._running is not None:
            self._running.cancel()

    def outcome(self) -> Outcome:
        """Returns a record for each request that has ended."""
        records = [self._record(raw, raw.end_s) for raw in self._raw if raw.end_s is not None]
        return Outcome(records, len(self._raw) - len(records))

    def _record(self, raw: _Raw, end_s: float) -> Record:
        """Builds a record. A response that cannot be decoded makes its request a failed one."""
        try:
            response, error = self._target.decode(raw.stamped), raw.error
        except ValueError as undecodable:
            response, error = Response(), raw.error or str(undecodable)
        prompt_tokens = (response.prompt_tokens or 0) if isinstance(raw.prompt, str) else len(raw.prompt)
        return record(prompt_tokens, response.arrivals, intended_s=raw.intended_s, sent_s=raw.sent_s, end_s=end_s, error=error)

    async def _prepared(self) -> None:
        """Creates all requests before the clock starts, unless the run is limited by time."""
        if not isinstance(self._load.arrivals, ClosedLoop):
            await self._open_loop(scheduled(self._load))
            return
        requests = self._load.workload.requests()
        if self._load.duration_s is None:
            requests = iter(list(requests))
        await self._closed_loop(requests, self._load.arrivals.streams)

    async def _closed_loop(self, requests: Iterator[Request], streams: int) -> None:
        start_s = time.monotonic()
        stop_s = start_s + (self._load.duration_s or math.inf)
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(self._stream(requests, start_s, stop_s))

    async def _stream(self, requests: Iterator[Request], intended_s: float, stop_s: float) -> None:
        while intended_s < stop_s and (request := next(requests, None)) is not None:
            intended_s = await self._send(request, intended_s)

    async def _open_loop(self, requests: Sequence[Scheduled]) -> None:
        slots = asyncio.Semaphore(self._load.max_in_flight or max(1, len(requests)))
        start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for offset_s, request in requests:
                await _sleep_until(start_s + offset_s)
                await slots.acquire()
                sending = group.create_task(self._send(request, start_s + offset_s))
                sending.add_done_callback(lambda _: slots.release())

    async def _send(self, request: Request, intended_s: float) -> float:
        """Sends one request and returns the time at which it ended."""
        clock = time.monotonic
        raw = _Raw(request.prompt, intended_s, clock())
        self._raw.append(raw)
        stamped = raw.stamped

        def stamp(payload: Any) -> None:
            stamped.append((clock(), payload))

        try:
            await self._target.send(request.prompt, request.output_tokens, stamp)
        except TargetError as error:
            raw.error = str(error)[:_ERROR_CHARACTERS]
        except Exception as error:  # noqa: BLE001 - whatever a client library raises is this request's outcome
            raw.error = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
        raw.end_s = clock()
        self._ended += 1
        self._on_progress(self._ended)
        return raw.end_s


async def _sleep_until(at_s: float) -> None:
    if (left_s := at_s - time.monotonic()) > 0:
        await asyncio.sleep(left_s)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disables garbage collection, so that pauses of the client are not counted against the server."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
