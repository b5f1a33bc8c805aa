"""Stopping a cluster loses no accepted request and leaves no process, port or shared memory behind."""

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from neox_serve.client import AsyncClient
from neox_serve.core.errors import Reason
from tests.clusters import CommandCluster, running_cluster
from tests.ray.conftest import fake_cluster_values
from tests.streams import NO_RETRY, read_stream

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(("method", "tokens"), [("ctrl-c", 200), ("down", 600)])
async def test_stop_finishes_accepted_requests_and_leaves_nothing_behind(tmp_path: Path, method: str, tokens: int) -> None:
    """The streams, at 20 ms per token, take longer than the start of the command that stops the cluster."""
    with running_cluster(tmp_path, fake_cluster_values()) as cluster:
        family = cluster.family()
        segments = {segment for process in family for segment in shared_memory(process)}
        assert segments
        ports = {cluster.settings.gateway.port, cluster.settings.metrics.port, cluster.settings.ray.dashboard_port}
        async with AsyncClient(cluster.address, retry=NO_RETRY) as client:
            streams = [asyncio.create_task(read_stream(client, f"accepted {n}", max_tokens=tokens)) for n in range(4)]
            await asyncio.sleep(0.5)
            down = cluster.down() if method == "down" else None  # the command sends SIGTERM
            if down is None:
                cluster.interrupt(signal.SIGINT)
            rejection = await rejection_while_draining(client)
            assert rejection is Reason.DRAINING
            records = await asyncio.gather(*streams)
            assert [record.error for record in records] == [None] * 4
            assert [len(record.token_ids) for record in records] == [tokens] * 4
        assert await asyncio.to_thread(cluster.wait_stopped) == 0
        assert down is None or await asyncio.to_thread(down.wait, 30) == 0
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    listening = {
        connection.laddr.port for connection in psutil.net_connections("tcp") if connection.laddr and connection.status == "LISTEN"
    }
    assert not ports & listening
    assert [segment for segment in segments if segment.exists()] == []


def shared_memory(process: psutil.Process) -> set[Path]:
    """Returns the shared-memory files that a process has mapped."""
    with contextlib.suppress(psutil.Error):
        return {Path(region.path) for region in process.memory_maps() if region.path.startswith("/dev/shm/")}
    return set()


async def rejection_while_draining(client: AsyncClient) -> Reason | None:
    """Sends requests until a gateway rejects one and returns its reason; None if none does within 10 s."""
    for _ in range(200):
        record = await read_stream(client, "too late", max_tokens=1)
        if record.error:
            return record.error.reason
        await asyncio.sleep(0.05)
    return None


def test_second_start_is_rejected_with_the_way_to_stop_the_first(cluster: CommandCluster, tmp_path: Path) -> None:
    second = CommandCluster(tmp_path, cluster.values)
    values = {**second.values, "state_folder": str(cluster.settings.state_folder)}
    second = CommandCluster(tmp_path, values)
    with pytest.raises(AssertionError, match=r"already runs|cannot listen"):
        second.start()
