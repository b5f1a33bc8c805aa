"""Overload of four times the capacity: the goodput, the time to a refusal, and the growth of memory.

One gateway, router and replica run in this process, with real gRPC and the fake engine: `python -m tests.bench.faults.overload`. Requests
arrive as a Poisson process, each with a deadline. Goodput counts the requests that complete before their deadline.
"""

import asyncio
import sys
from dataclasses import dataclass
from random import Random

import psutil

from neox_serve.client import AsyncClient, RetryPolicy
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.loadgen.summaries import percentile
from tests.fakes.gateways import running_gateway
from tests.fakes.link_cluster import LinkCluster

_PLACES, _TOKENS, _ITL_S = 16, 25, 0.02
_CAPACITY_PER_S = _PLACES / (_TOKENS * _ITL_S)
_DEADLINE_S = 3.0
_DURATION_S = 10.0


@dataclass(frozen=True, slots=True)
class Overloaded:
    """The result of the measurement."""

    goodput_per_s: dict[float, float]
    """Answers in time per second, by load as a multiple of the capacity."""
    refusals_s: list[float]
    """Times to a refusal at 4 x the capacity, in seconds."""
    grown_mib: float
    """Growth of memory, in MiB."""

    @property
    def goodput_over_peak(self) -> float:
        """Goodput at 4 x the capacity relative to the maximum at any load."""
        return self.goodput_per_s[4.0] / max(self.goodput_per_s.values())

    @property
    def refusal_p99_s(self) -> float:
        """99th percentile of the time to a refusal at 4 x the capacity, in seconds."""
        return percentile(self.refusals_s, 0.99)


async def measure() -> Overloaded:
    """Measures all loads in sequence, which takes about a minute."""
    engine = FakeEngine(FakeTiming(ttft_s=_ITL_S, itl_s=_ITL_S))
    goodput: dict[float, float] = {}
    async with LinkCluster() as cluster:
        await cluster.router()
        await cluster.replica(engine, max_requests=_PLACES)
        await cluster.replica(engine, Pool.EMBEDDING)
        dispatcher = await cluster.dispatcher(replicas=2)
        async with running_gateway(dispatcher, model={"name": "m"}) as server:
            client = AsyncClient(f"127.0.0.1:{server.port}", retry=RetryPolicy(max_attempts=1))
            for load in (0.8, 1.0, 4.0):
                goodput[load], refusals = await _run(client, load)
            before = psutil.Process().memory_info().rss
            await _run(client, 4.0)
            grown_mib = (psutil.Process().memory_info().rss - before) / 2**20
            await client.close()
    await engine.close()
    return Overloaded(goodput, refusals, grown_mib)


async def _run(client: AsyncClient, load: float) -> tuple[float, list[float]]:
    rng, clock = Random(1), asyncio.get_running_loop().time
    calls, began_s = [], clock()
    while clock() < began_s + _DURATION_S:
        calls.append(asyncio.create_task(_call(client)))
        await asyncio.sleep(rng.expovariate(load * _CAPACITY_PER_S))
    outcomes = await asyncio.gather(*calls)
    return sum(outcome is None for outcome in outcomes) / _DURATION_S, [
        seconds for seconds in outcomes if seconds is not None and seconds >= 0
    ]


async def _call(client: AsyncClient) -> float | None:
    """Sends a request. Return None if it was answered in time, the seconds to its refusal, or -1 for any other outcome."""
    clock = asyncio.get_running_loop().time
    began_s = clock()
    try:
        await client.generate([1, 2, 3], max_tokens=_TOKENS, ignore_eos=True, timeout_s=_DEADLINE_S)
    except ServeError as error:
        return clock() - began_s if error.reason is Reason.OVERLOADED else -1.0
    return None


if __name__ == "__main__":
    found = asyncio.run(measure())
    sys.stdout.write(
        f"goodput/s by load: {found.goodput_per_s}; at 4 x relative to the peak: {found.goodput_over_peak:.3f}\n"
        f"{len(found.refusals_s)} refusals, p99 {1e3 * found.refusal_p99_s:.1f} ms; memory grew by {found.grown_mib:.1f} MiB\n"
    )
