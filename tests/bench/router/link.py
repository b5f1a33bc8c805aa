"""What a whole router process admits, over its real links, beside a large cluster's load reports.

The router is a process, the simulated replicas are another. Four simulated gateways, in this one, hold 200 leases on each replica from
their hellos on and speak as real ones do: a message for each request, and one before it with the leases that have ended meanwhile. Once
they know all replicas, callers ask as fast as they are answered, which says how many admissions the router carries; then requests come
evenly at half that rate, which says how soon they are answered.

All share the machine: the router's CPU per admission says what a core of its own would carry.
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
    """connect_cpu_s: of the router until all gateways know all replicas.

    admissions_per_s: as many as it carried beside the peers; cpu_us_per_admission: of the router then, load reports included.
    paced_per_s: half of that; p50_s, p99_s, highest_s: from asked to answered, then.
    """

    replicas: int
    leases: int
    connect_cpu_s: float
    admissions_per_s: float
    cpu_us_per_admission: float
    paced_per_s: float
    p50_s: float
    p99_s: float
    highest_s: float


def measure(replicas: int, phase_s: float, folder: Path) -> LinkAdmissions:
    """Starts a router, connects a cluster to it and asks. Raises StartError or TimeoutError where they do not start."""
    with _router(folder) as (process, address):
        try:
            gc.disable()  # what is measured is the router's pauses, not its client's
            found: LinkAdmissions = uvloop.run(_measure(replicas, phase_s, process, address, folder))
        finally:
            gc.enable()
            gc.collect()  # its channels are gone before the router is
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
        await _ask_for(_WARM_UP_S, gateways)
        before_s = _cpu_s(process)
        rate = len(await _ask_for(phase_s, gateways)) / phase_s
        cpu_us = 1e6 * (_cpu_s(process) - before_s) / (rate * phase_s)
        answers_s = await _ask_at(rate / 2, phase_s, gateways)
        p50_s, p99_s, highest_s = (percentile(answers_s, fraction) for fraction in (0.5, 0.99, 1.0))
        return LinkAdmissions(size, size * _IN_FLIGHT, connect_cpu_s, rate, cpu_us, rate / 2, p50_s, p99_s, highest_s)


async def _ask_for(seconds: float, gateways: list["_Gateway"]) -> list[float]:
    """How long answers took to callers who ask again at once."""
    end_s = time.perf_counter() + seconds

    async def call(gateway: "_Gateway") -> list[float]:
        answers_s: list[float] = []
        while time.perf_counter() < end_s:
            answers_s.append(await gateway.ask())
        return answers_s

    called = await asyncio.gather(*(call(gateway) for gateway in gateways for _ in range(_CALLERS_PER_GATEWAY)))
    return [answer_s for answers_s in called for answer_s in answers_s]


async def _ask_at(rate: float, seconds: float, gateways: list["_Gateway"]) -> list[float]:
    """How long answers took to requests that come at this rate, whatever becomes of those before."""
    start_s = time.perf_counter()
    asked: list[asyncio.Task[float]] = []
    while (elapsed_s := time.perf_counter() - start_s) < seconds:
        asked += [asyncio.create_task(gateways[n % _GATEWAYS].ask()) for n in range(len(asked), int(elapsed_s * rate))]
        await asyncio.sleep(0.001)
    return await asyncio.gather(*asked)


class _Gateway:
    """A gateway whose leases end in the order they began, one for each that begins."""

    def __init__(self, gateway_id: str, numbers: Sequence[int]) -> None:
        self._ids = count(1)
        self._rng = Random(gateway_id)
        self._send_queue = SendQueue[pb.ConnectGatewayRequest]()
        leases = [Lease(next(self._ids), replica(number).replica_id, 1000) for _ in range(_IN_FLIGHT) for number in numbers]
        self._send_queue.put(wire.gateway_hello(gateway_id, leases))
        self._in_flight = deque(lease.lease_id for lease in leases)
        self._ended: list[int] = []
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._known = 0
        self._told = asyncio.Event()

    @asynccontextmanager
    async def connected(self, address: str) -> AsyncIterator[None]:
        """A stream to the router for as long as the block lasts."""
        async with internal_channel(address) as channel:
            call = RouterLinkServiceStub(channel).ConnectGateway()
            async with _in_background(self._send_queue.write_to(call)), _in_background(self._hear(call)):
                yield

    async def knows(self, replicas: int) -> None:
        """Returns once the router has told of so many replicas."""
        while self._known < replicas:
            self._told.clear()
            await self._told.wait()

    async def ask(self) -> float:
        """How long a replica's grant took, from asked to heard. What has ended since the last request is settled first."""
        asked_s = time.perf_counter()
        if self._ended:
            self._send_queue.put(wire.settlements(map(Settled, self._ended)))
            self._ended = []
        lease_id = next(self._ids)
        self._asked[lease_id] = asyncio.get_running_loop().create_future()
        demand = Demand(Pool.GENERATION, MODEL, self._rng.randint(16, 1024), self._rng.randint(16, 1024))
        self._send_queue.put(wire.admit(lease_id, demand))
        await self._asked[lease_id]
        return time.perf_counter() - asked_s

    async def _hear(self, call: Any) -> None:
        while True:
            response = await read(call, pb.ConnectGatewayResponse)
            match response.WhichOneof("message"):
                case "admit":
                    self._asked.pop(response.admit.lease_id).set_result(None)
                    self._in_flight.append(response.admit.lease_id)
                    self._ended.append(self._in_flight.popleft())
                case "replicas":
                    self._known = len(response.replicas.replicas)
                    self._told.set()


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
