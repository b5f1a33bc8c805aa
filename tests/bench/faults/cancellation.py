"""Time until an engine is free after a request is abandoned: cancelled, past its deadline, or disconnected from its client.

The time is measured from outside, on a complete cluster with a real engine under load. It starts when the client cancels, the deadline
passes, or the connection is reset, and ends when the engine's own count of requests in GetClusterStatus no longer includes the request.
Replicas report every 10 ms and the benchmark polls every 5 ms, so a value is at most about 20 ms too high and never too low. vLLM removes
the request from its batch before its next step.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from neox_serve.loadgen.summaries import percentile
from neox_serve.loadgen.targets.grpc_gateway import stream_request
from neox_serve.loadgen.workloads import Synthetic
from neox_serve.model.model_files import locate_tokenizer, read_facts
from neox_serve.v1 import ops_service_pb2
from tests.bench.engines.engine_comparison import VALUES
from tests.bench.engines.systems import cluster_values
from tests.bench.faults.forwarder import Forwarder
from tests.bench.view import View
from tests.clusters import running_cluster

_STREAM = "/neox_serve.v1.InferenceService/StreamGenerate"
_STATUS = "/neox_serve.v1.OpsService/GetClusterStatus"

_BACKGROUND = 8
_LONG_TOKENS = 1_900
_TRIALS_PER_KIND = 40
_TRIALS_PER_BACKGROUND = 10
_DEADLINE_S = 1.0
_MAX_WAIT_S = 10.0
_POLL_INTERVAL_S = 0.005


class NotMeasuredError(RuntimeError):
    """The conditions of the measurement were not met."""


@dataclass(frozen=True, slots=True)
class Freed:
    """Times until the engine was free, in seconds."""

    after_cancel_s: list[float]
    """After the client cancelled."""
    after_deadline_s: list[float]
    """After the deadline passed."""
    after_client_loss_s: list[float]
    """After the client's connection was reset."""

    @property
    def p99_s(self) -> float:
        """99th percentile over all requests."""
        return percentile([*self.after_cancel_s, *self.after_deadline_s, *self.after_client_loss_s], 0.99)


def run(folder: Path, view: View) -> Freed:
    """Starts a cluster, abandons requests in three ways, and shows the times until the engine was free."""
    values = {**cluster_values(VALUES), "router": {"load_report_interval_s": 0.01}}
    with view.step("cancellation: starting neox-serve"), running_cluster(folder, values) as cluster:
        freed = asyncio.run(_measure(cluster.address, view))
    kinds = {"cancelled": freed.after_cancel_s, "deadline": freed.after_deadline_s, "client lost": freed.after_client_loss_s}
    rows = [[kind, str(len(all_s)), *(f"{1e3 * percentile(all_s, at):.0f}" for at in (0.5, 0.99, 1.0))] for kind, all_s in kinds.items()]
    view.table("Time until the engine is free, ms", ["cause", "requests", "p50", "p99", "highest"], rows)
    return freed


async def _measure(address: str, view: View) -> Freed:
    async with grpc.aio.insecure_channel(address) as channel:
        gateway = _Gateway(channel, address)
        with view.progress("cancellation", 3 * _TRIALS_PER_KIND) as on_progress:
            kinds = (gateway.cancel, gateway.let_deadline_pass, gateway.lose_client)
            return Freed(*[await _trials(gateway, kind, number, on_progress) for number, kind in enumerate(kinds)])


async def _trials(
    gateway: "_Gateway", trial: Callable[[], Awaitable[float]], number: int, on_progress: Callable[[int], None]
) -> list[float]:
    found: list[float] = []
    while len(found) < _TRIALS_PER_KIND:
        async with gateway.background():
            for _ in range(_TRIALS_PER_BACKGROUND):
                found.append(await trial())
                on_progress(number * _TRIALS_PER_KIND + len(found))
    return found


class _Gateway:
    """Calls to one gateway. Each trial returns the seconds until the engine had one request fewer."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._address = address
        self._stream: Any = channel.unary_stream(_STREAM)
        self._status: Any = channel.unary_unary(_STATUS)
        vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
        self._requests = Synthetic("cancellation", None, 64, _LONG_TOKENS, vocabulary_size).requests()

    @asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """Keeps other requests running during the block. Raises NotMeasuredError if one of them ends."""
        calls = [self._start(self._stream) for _ in range(_BACKGROUND)]
        await asyncio.gather(*(call.read() for call in calls))
        tasks = [asyncio.ensure_future(_read(call)) for call in calls]
        await self._reached(_BACKGROUND)
        yield
        if any(task.done() for task in tasks):
            raise NotMeasuredError("a background request ended too early")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._reached(0)

    async def cancel(self) -> float:
        """Cancels a request."""
        call = self._start(self._stream)
        await self._running(call)
        abandoned_s = time.monotonic()
        call.cancel()
        return await self._freed_after(abandoned_s)

    async def let_deadline_pass(self) -> float:
        """Lets the deadline of a request pass."""
        abandoned_s = time.monotonic() + _DEADLINE_S
        call = self._start(self._stream, timeout=_DEADLINE_S)
        await self._running(call)
        if time.monotonic() >= abandoned_s:
            raise NotMeasuredError(f"the request did not run within its deadline of {_DEADLINE_S:g} s")
        return await self._freed_after(abandoned_s)

    async def lose_client(self) -> float:
        """Resets the connection of a client."""
        host, _, port = self._address.rpartition(":")
        async with Forwarder(host, int(port)) as forwarder:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            async with grpc.aio.insecure_channel(forwarder.address, options) as channel:
                call = self._start(channel.unary_stream(_STREAM))
                await self._running(call)
                abandoned_s = time.monotonic()
                forwarder.cut()
                return await self._freed_after(abandoned_s)

    def _start(self, method: Any, timeout: float | None = None) -> Any:
        return method(stream_request(next(self._requests).prompt, _LONG_TOKENS).SerializeToString(), timeout=timeout)

    async def _running(self, call: Any) -> None:
        """Waits until the request generates tokens and the engine counts it. Raises NotMeasuredError if it ends first."""
        try:
            await call.read()
        except grpc.RpcError as error:
            raise NotMeasuredError(f"a request ended before it was abandoned: {error}") from error
        await self._reached(_BACKGROUND + 1)

    async def _freed_after(self, abandoned_s: float) -> float:
        return max(0.0, await self._reached(_BACKGROUND) - abandoned_s)

    async def _reached(self, requests: int) -> float:
        """Waits until the engine has this many requests and returns that time. Raises NotMeasuredError if the timeout expires."""
        deadline_s = time.monotonic() + _MAX_WAIT_S
        while time.monotonic() < deadline_s:
            if await self._in_engine() == requests:
                return time.monotonic()
            await asyncio.sleep(_POLL_INTERVAL_S)
        raise NotMeasuredError(f"the engine did not reach {requests} requests within {_MAX_WAIT_S:g} s")

    async def _in_engine(self) -> int:
        status = ops_service_pb2.GetClusterStatusResponse.FromString(await self._status(b""))
        return sum(replica.running_requests + replica.waiting_requests for replica in status.replicas)


async def _read(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
