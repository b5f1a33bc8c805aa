"""Admissions per second of a router process over its real links, with the load reports of a large cluster.

The router and the simulated replicas each run in a process of their own. Four simulated gateways in this process hold 200 leases on each
replica from the start and communicate like real gateways: one message per request, preceded by a message with the leases that have ended.
Once the gateways know all replicas, callers send requests as fast as they are answered, which gives the maximum rate. Then requests arrive
evenly at half of that rate, which gives the response times. All processes share the machine, so the router's CPU time per admission shows
what a dedicated core could carry.
"""

import asyncio
import gc
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import psutil
import uvloop

from neox_serve.core.cluster import Demand, Lease, Settled
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import internal_channel
from neox_serve.link.streams import SendQueue, read
from neox_serve.loadgen.summaries import percentile
from neox_serve.settings import restore
from neox_serve.wire import router_messages as wire
from tests.bench.ladder.hosts.hosting import address_file
from tests.bench.processes import system_process, wait_for
from tests.bench.router.replicas import MODEL, replica

_IN_FLIGHT = 200
_GATEWAYS = 4
_CALLERS_PER_GATEWAY = 32
_WARM_UP_S = 1.0
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class LinkAdmissions:
    """The result for one size of the cluster."""

    replicas: int
    """Number of replicas."""
    leases: int
    """Number of leases."""
    connect_cpu_s: float
    """CPU time of the router until all gateways know all replicas, in seconds."""
    admissions_per_s: float
    """Maximum rate of admissions."""
    cpu_us_per_admission: float
    """CPU time of the router per admission at the maximum rate, including load reports, in microseconds."""
    paced_per_s: float
    """Half of the maximum rate, at which the latencies are measured."""
    p50_s: float
    """Median time from request to reply, in seconds."""
    p99_s: float
    """99th percentile of the time from request to reply, in seconds."""
    highest_s: float
    """Maximum time from request to reply, in seconds."""


def measure(replicas: int, phase_s: float, folder: Path) -> LinkAdmissions:
    """Starts a router, connects a simulated cluster to it, and measures it.

    Raises StartError or TimeoutError if the router or the replicas do not start.
    """
    with _router(folder) as (process, address):
        try:
            gc.disable()  # only the router's pauses are to be measured, not those of its client
            found: LinkAdmissions = uvloop.run(_measure(replicas, phase_s, process, address, folder))
        finally:
            gc.enable()
            gc.collect()  # closes the channels before the router stops
        return found


@contextmanager
def _router(folder: Path) -> Iterator[tuple[psutil.Popen, str]]:
    settings_file, ready, log = folder / "settings.json", address_file(folder, "router"), folder / "router.log"
    settings = restore({"metrics": {"port": 0}})
    settings_file.write_text(json.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    with system_process(["-m", "tests.bench.ladder.hosts.router", str(settings_file), str(folder)], {}, log) as process:
        wait_for(ready.exists, process, log, _START_S, "router")
        yield process, ready.read_text(encoding="utf-8")


async def _measure(size: int, phase_s: float, process: psutil.Popen, address: str, folder: Path) -> LinkAdmissions:
    async with AsyncExitStack() as to_end:
        gateways = [_Gateway(f"gateway-{number}", range(number, size, _GATEWAYS)) for number in range(_GATEWAYS)]
        for gateway in gateways:
            await to_end.enter_async_context(gateway.connected(address))
        idle_s = _cpu_s(process)
        command = ["-m", "tests.bench.router.replicas", address, str(size)]
        to_end.enter_context(system_process(command, {}, folder / "replicas.log"))
        async with asyncio.timeout(_START_S):
            await asyncio.gather(*(gateway.knows(size) for gateway in gateways))
        connect_cpu_s = _cpu_s(process) - idle_s
        await _measure_closed_loop(_WARM_UP_S, gateways)
        before_s = _cpu_s(process)
        rate = len(await _measure_closed_loop(phase_s, gateways)) / phase_s
        cpu_us = 1e6 * (_cpu_s(process) - before_s) / (rate * phase_s)
        durations_s = await _measure_open_loop(rate / 2, phase_s, gateways)
        p50_s, p99_s, highest_s = (percentile(durations_s, fraction) for fraction in (0.5, 0.99, 1.0))
        return LinkAdmissions(size, size * _IN_FLIGHT, connect_cpu_s, rate, cpu_us, rate / 2, p50_s, p99_s, highest_s)


async def _measure_closed_loop(seconds: float, gateways: list["_Gateway"]) -> list[float]:
    """Returns the response times of callers that send the next request as soon as the previous one is answered."""
    end_s = time.perf_counter() + seconds

    async def call(gateway: "_Gateway") -> list[float]:
        durations_s: list[float] = []
        while time.perf_counter() < end_s:
            durations_s.append(await gateway.admit())
        return durations_s

    called = await asyncio.gather(*(call(gateway) for gateway in gateways for _ in range(_CALLERS_PER_GATEWAY)))
    return [duration_s for durations_s in called for duration_s in durations_s]


async def _measure_open_loop(rate: float, seconds: float, gateways: list["_Gateway"]) -> list[float]:
    """Returns the response times of requests that arrive at a fixed rate, independent of earlier responses."""
    start_s = time.perf_counter()
    tasks: list[asyncio.Task[float]] = []
    while (elapsed_s := time.perf_counter() - start_s) < seconds:
        tasks += [asyncio.create_task(gateways[n % _GATEWAYS].admit()) for n in range(len(tasks), int(elapsed_s * rate))]
        await asyncio.sleep(0.001)
    return await asyncio.gather(*tasks)


class _Gateway:
    """A simulated gateway. For each lease that begins, its oldest lease ends."""

    def __init__(self, gateway_id: str, numbers: Sequence[int]) -> None:
        self._ids = count(1)
        self._rng = Random(gateway_id)
        self._send_queue = SendQueue[pb.ConnectGatewayRequest]()
        leases = [Lease(next(self._ids), replica(number).replica_id, 1000) for _ in range(_IN_FLIGHT) for number in numbers]
        self._send_queue.put(wire.gateway_hello(gateway_id, leases))
        self._in_flight = deque(lease.lease_id for lease in leases)
        self._ended: list[int] = []
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._known = 0
        self._replicas_changed = asyncio.Event()

    @asynccontextmanager
    async def connected(self, address: str) -> AsyncIterator[None]:
        """Connects to the router until the end of the block."""
        async with internal_channel(address) as channel:
            call = RouterLinkServiceStub(channel).ConnectGateway()
            async with _in_background(self._send_queue.write_to(call)), _in_background(self._read_replies(call)):
                yield

    async def knows(self, replicas: int) -> None:
        """Waits until the router has announced this number of replicas."""
        while self._known < replicas:
            self._replicas_changed.clear()
            await self._replicas_changed.wait()

    async def admit(self) -> float:
        """Request an admission and return its response time in seconds. Leases that have ended since the last request are settled first."""
        sent_s = time.perf_counter()
        if self._ended:
            self._send_queue.put(wire.settlements(map(Settled, self._ended)))
            self._ended = []
        lease_id = next(self._ids)
        self._pending[lease_id] = asyncio.get_running_loop().create_future()
        demand = Demand(Pool.GENERATION, MODEL, self._rng.randint(16, 1024), self._rng.randint(16, 1024))
        self._send_queue.put(wire.admit(lease_id, demand))
        await self._pending[lease_id]
        return time.perf_counter() - sent_s

    async def _read_replies(self, call: Any) -> None:
        while True:
            response = await read(call, pb.ConnectGatewayResponse)
            match response.WhichOneof("message"):
                case "admit":
                    self._pending.pop(response.admit.lease_id).set_result(None)
                    self._in_flight.append(response.admit.lease_id)
                    self._ended.append(self._in_flight.popleft())
                case "replicas":
                    self._known = len(response.replicas.replicas)
                    self._replicas_changed.set()


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
