"""A replica in its own process is killed or frozen: how soon its gateway notices."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from neox_serve.core.errors import Reason, ServeError
from tests.fakes.link_cluster import MODEL, LinkCluster, generation, read_all, until

REPOSITORY = Path(__file__).parents[3]


@asynccontextmanager
async def replica_process(router_address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running replica; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.replica_process", router_address, cwd=REPOSITORY, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_replica_that_vanishes_fails_its_streams(sent: signal.Signals) -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        async with replica_process(router.address) as process:
            dispatcher = await cluster.dispatcher(start_timeout_s=60)
            streams = [await dispatcher.open_generation(MODEL, generation(100_000)) for _ in range(4)]
            for stream in streams:
                await stream.next()
            process.send_signal(sent)
            reading = [asyncio.ensure_future(read_all(stream)) for stream in streams]
            await until(lambda: all(each.done() for each in reading))
            errors = [each.exception() for each in reading]
            assert all(isinstance(error, ServeError) and error.reason is Reason.REPLICA_LOST for error in errors)
            await until(lambda: router.state.lease_count() == 0)
            assert dispatcher.requests_in_flight == 0
