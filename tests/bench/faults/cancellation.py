"""How long an engine goes on with a request that nobody waits for any more: cancelled, past its deadline, or its client gone.

Measured from outside, on a whole cluster with a real engine under load. The clock starts when the client cancels, its deadline passes, or
its connection is reset; it stops when the engine's own count of requests, as GetClusterStatus gives it, no longer has the request. Replicas
report every 10 ms here and the bench asks every 5 ms, so a figure is some 20 ms too high at most, and never too low. vLLM itself takes
the request out of its batch before its next step.
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
_TRIALS_OF_EACH_KIND = 40
_TRIALS_AT_A_TIME = 10
_DEADLINE_S = 1.0
_FREED_WITHIN_S = 10.0
_ASKED_EVERY_S = 0.005


class NotMeasuredError(RuntimeError):
    """The measurement did not come about as meant."""


@dataclass(frozen=True, slots=True)
class Freed:
    """Seconds until the engine was free, by the way in which requests were given up."""

    after_cancel_s: list[float]
    after_deadline_s: list[float]
    after_client_loss_s: list[float]

    @property
    def p99_s(self) -> float:
        """Over all of them."""
        return percentile([*self.after_cancel_s, *self.after_deadline_s, *self.after_client_loss_s], 0.99)


def run(folder: Path, view: View) -> Freed:
    """Starts a cluster, gives up requests in three ways, and shows how soon the engine was free."""
    values = {**cluster_values(VALUES), "router": {"load_report_interval_s": 0.01}}
    with view.step("cancellation: starting neox-serve"), running_cluster(folder, values) as cluster:
        freed = asyncio.run(_measure(cluster.address, view))
    kinds = {"cancelled": freed.after_cancel_s, "deadline": freed.after_deadline_s, "client lost": freed.after_client_loss_s}
    rows = [[kind, str(len(all_s)), *(f"{1e3 * percentile(all_s, at):.0f}" for at in (0.5, 0.99, 1.0))] for kind, all_s in kinds.items()]
    view.table("Engine free again after, ms", ["given up by", "requests", "p50", "p99", "highest"], rows)
    return freed


async def _measure(address: str, view: View) -> Freed:
    async with grpc.aio.insecure_channel(address) as channel:
        gateway = _Gateway(channel, address)
        with view.progress("cancellation", 3 * _TRIALS_OF_EACH_KIND) as on_progress:
            kinds = (gateway.cancel, gateway.let_deadline_pass, gateway.lose_client)
            return Freed(*[await _trials(gateway, kind, number, on_progress) for number, kind in enumerate(kinds)])


async def _trials(
    gateway: "_Gateway", trial: Callable[[], Awaitable[float]], number: int, on_progress: Callable[[int], None]
) -> list[float]:
    found: list[float] = []
    while len(found) < _TRIALS_OF_EACH_KIND:
        async with gateway.background():
            for _ in range(_TRIALS_AT_A_TIME):
                found.append(await trial())
                on_progress(number * _TRIALS_OF_EACH_KIND + len(found))
    return found


class _Gateway:
    """Calls of one gateway. Every trial returns the seconds until the engine had one request less."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._address = address
        self._stream: Any = channel.unary_stream(_STREAM)
        self._status: Any = channel.unary_unary(_STATUS)
        vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
        self._requests = Synthetic("cancellation", None, 64, _LONG_TOKENS, vocabulary_size).requests()

    @asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """Other requests that run all the while. Raises NotMeasuredError where one of them did not."""
        calls = [self._start(self._stream) for _ in range(_BACKGROUND)]
        await asyncio.gather(*(call.read() for call in calls))
        tasks = [asyncio.ensure_future(_read(call)) for call in calls]
        await self._reached(_BACKGROUND)
        yield
        if any(task.done() for task in tasks):
            raise NotMeasuredError("a request in the background ended before it should")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._reached(0)

    async def cancel(self) -> float:
        """The client cancels."""
        call = self._start(self._stream)
        await self._running(call)
        given_up_s = time.monotonic()
        call.cancel()
        return await self._freed_after(given_up_s)

    async def let_deadline_pass(self) -> float:
        """The client's deadline passes."""
        given_up_s = time.monotonic() + _DEADLINE_S
        call = self._start(self._stream, timeout=_DEADLINE_S)
        await self._running(call)
        if time.monotonic() >= given_up_s:
            raise NotMeasuredError(f"the request did not run within its deadline of {_DEADLINE_S:g} s")
        return await self._freed_after(given_up_s)

    async def lose_client(self) -> float:
        """The client's connection is reset."""
        host, _, port = self._address.rpartition(":")
        async with Forwarder(host, int(port)) as forwarder:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            async with grpc.aio.insecure_channel(forwarder.address, options) as channel:
                call = self._start(channel.unary_stream(_STREAM))
                await self._running(call)
                given_up_s = time.monotonic()
                forwarder.cut()
                return await self._freed_after(given_up_s)

    def _start(self, method: Any, timeout: float | None = None) -> Any:
        return method(stream_request(next(self._requests).prompt, _LONG_TOKENS).SerializeToString(), timeout=timeout)

    async def _running(self, call: Any) -> None:
        """Returns once the request gives tokens and the engine counts it. Raises NotMeasuredError where it ends before that."""
        try:
            await call.read()
        except grpc.RpcError as error:
            raise NotMeasuredError(f"a request ended before it was given up: {error}") from error
        await self._reached(_BACKGROUND + 1)

    async def _freed_after(self, given_up_s: float) -> float:
        return max(0.0, await self._reached(_BACKGROUND) - given_up_s)

    async def _reached(self, requests: int) -> float:
        """When the engine was first seen with this many requests. Raises NotMeasuredError where it is not for long."""
        deadline_s = time.monotonic() + _FREED_WITHIN_S
        while time.monotonic() < deadline_s:
            if await self._in_engine() == requests:
                return time.monotonic()
            await asyncio.sleep(_ASKED_EVERY_S)
        raise NotMeasuredError(f"the engine did not come to {requests} requests within {_FREED_WITHIN_S:g} s")

    async def _in_engine(self) -> int:
        status = ops_service_pb2.GetClusterStatusResponse.FromString(await self._status(b""))
        return sum(replica.running_requests + replica.waiting_requests for replica in status.replicas)


async def _read(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
