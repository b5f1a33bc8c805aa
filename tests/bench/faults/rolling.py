"""The effect of a rolling update on clients: two replicas, and eight clients that stream one answer after another."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_serve.client import AsyncClient
from tests.bench.engines.fake_comparison import VALUES
from tests.bench.engines.systems import cluster_values
from tests.bench.faults.cancellation import NotMeasuredError
from tests.bench.view import View
from tests.clusters import GATEWAY, GENERATION, CommandCluster, running_cluster
from tests.streams import NO_RETRY, StreamRecord, read_stream

_CLIENTS = 8
_TOKENS = 100
_BEFORE_AND_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Rolled:
    """The result of the measurement."""

    longest_gap_s: float
    """Longest time that any client waited for a token, in seconds."""
    streams: int
    """Number of completed streams."""
    rolling_s: float
    """Duration of the rolling update, in seconds."""


def run(folder: Path, view: View) -> Rolled:
    """Starts a cluster, updates it under load, and shows the longest gap. Raises NotMeasuredError if a client saw an error."""
    replicas = {"min": 2, "initial": 2, "max": 2}
    values = cluster_values({"generation": {**VALUES["generation"], "replicas": replicas}})
    with view.step("rolling: starting neox-serve with two replicas"), running_cluster(folder, values) as cluster:
        rolled = asyncio.run(_measure(cluster, values, view))
    row = [f"{rolled.longest_gap_s:.3f}", str(rolled.streams), f"{rolled.rolling_s:.0f}"]
    view.table("Rolling update of an engine setting", ["", "longest gap s", "streams", "rolling s"], [["neox-serve", *row]])
    return rolled


async def _measure(cluster: CommandCluster, values: dict[str, Any], view: View) -> Rolled:
    gateways, engines = _pids(cluster, GATEWAY), _pids(cluster, GENERATION)
    rolled = asyncio.Event()
    async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
        clients = [asyncio.create_task(_keep_streaming(client, number, rolled)) for number in range(_CLIENTS)]
        await asyncio.sleep(_BEFORE_AND_AFTER_S)
        started_s = time.monotonic()
        with view.step("rolling: changing an engine setting with eight streams"):
            await asyncio.to_thread(cluster.roll, _changed(values))
        rolling_s = time.monotonic() - started_s
        await asyncio.sleep(_BEFORE_AND_AFTER_S)
        rolled.set()
        waits = [wait_s for task in clients for wait_s in await task]
    if _pids(cluster, GATEWAY) != gateways or engines & _pids(cluster, GENERATION):
        raise NotMeasuredError("the update replaced a gateway or did not replace an engine")
    return Rolled(max(waits), len(waits), rolling_s)


async def _keep_streaming(client: AsyncClient, number: int, rolled: asyncio.Event) -> list[float]:
    """Returns the longest wait within each stream. Raises NotMeasuredError if a stream failed or lost tokens."""
    waits: list[float] = []
    while not rolled.is_set():
        started_s = time.monotonic()
        record = await read_stream(client, f"client {number}, stream {len(waits)}", max_tokens=_TOKENS)
        if record.error is not None or len(record.token_ids) != _TOKENS:
            raise NotMeasuredError(f"a client received {record.error} after {len(record.token_ids)} tokens")
        waits.append(_longest_wait_s(record, started_s))
    return waits


def _longest_wait_s(record: StreamRecord, started_s: float) -> float:
    return max(record.times_s[0] - started_s, record.longest_gap_s)


def _changed(values: dict[str, Any]) -> dict[str, Any]:
    generation = values["generation"]
    return values | {"generation": {**generation, "engine": {**generation["engine"], "max_num_seqs": 64}}}


def _pids(cluster: CommandCluster, title: str) -> set[int]:
    return {process.pid for process in cluster.processes(title)}
