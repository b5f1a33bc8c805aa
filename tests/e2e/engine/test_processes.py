"""Processes of an engine: tensor-parallel workers, the death of the engine core, and a stop that leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Beam, EmbeddingRequest, GenerationRequest, Pool, Pooling, Sampling, Stopping
from neox_serve.engine.protocol import Engine
from tests.engines import RANK, Running, settings_of, write_adapter
from tests.fakes.recording_sink import RecordingSink, ask

pytestmark = pytest.mark.e2e

REQUEST = GenerationRequest("request", (286, 9, 89, 314, 200), Stopping(max_tokens=24, ignore_eos=True), Sampling(temperature=0.0))
LONG = GenerationRequest("long", (286, 9, 89), Stopping(max_tokens=1500, ignore_eos=True))
LOST_WITHIN_S = 20.0


@pytest.fixture(scope="module")
async def parallel(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """An engine with two tensor-parallel workers and an adapter."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two workers are bound to two cores")
    adapter = write_adapter(tmp_path_factory.mktemp("parallel") / "loud", scale=0.1)
    engine = {"tensor_parallel_size": 2, "cpu_threads_bind": "0|1", "max_lora_rank": RANK}
    settings = settings_of(Pool.GENERATION, engine, adapters=[{"name": "loud", "path": str(adapter)}])
    running = await Running.start(Pool.GENERATION, settings)
    yield running
    await running.engine.close()


def engine_core(running: Running) -> psutil.Process:
    """Returns the process of vLLM's engine core."""
    return next(process for process in running.processes if process.cmdline()[0].startswith("VLLM::EngineCore"))


async def test_two_workers_give_the_same_tokens_as_one_with_an_adapter(parallel: Running, generation_engine: Engine) -> None:
    request = GenerationRequest("r", tuple(range(40, 60)), Stopping(12, ignore_eos=True), Sampling(temperature=0.0), adapter="loud")
    alone, together = [(await ask(engine, request, "tp")).token_ids() for engine in (generation_engine, parallel.engine)]
    base = (await ask(parallel.engine, replace(request, adapter=None), "base")).token_ids()
    assert together == alone != base


async def test_engine_core_is_a_child_of_the_fork_server(parallel: Running) -> None:
    server = engine_core(parallel).parent()
    assert server is not None
    assert "forkserver" in " ".join(server.cmdline())


def test_fork_server_preload_imports_the_engine_core() -> None:
    """The fork server ignores a failing import, and each engine core would then import the modules itself."""
    code = (
        "import gc, sys; import neox_serve.engine.vllm.processes.core_imports; "
        "assert gc.isenabled(); assert 'vllm.v1.engine.core' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


async def test_two_workers_give_the_same_tokens_as_one(parallel: Running, generation_engine: Engine) -> None:
    two, one = await asyncio.gather(ask(parallel.engine, REQUEST), ask(generation_engine, REQUEST))
    assert two.token_ids() == one.token_ids()
    assert two.text() == one.text()


async def test_killed_engine_core_ends_all_requests_with_replica_lost(parallel: Running) -> None:
    sink = RecordingSink()
    await parallel.engine.generate("running", LONG, sink)
    await parallel.engine.generate("beams", GenerationRequest("beams", (5, 6), Stopping(max_tokens=500), beam=Beam(2)), sink)
    await sink.until("running", deltas=3)
    engine_core(parallel).send_signal(signal.SIGKILL)
    async with asyncio.timeout(LOST_WITHIN_S):
        ends = [(await sink.until(key))[-1].failure for key in ("running", "beams")]
    assert [failure and failure.reason for failure in ends] == [Reason.REPLICA_LOST] * 2
    await assert_lost(parallel.engine)


async def assert_lost(engine: Engine) -> None:
    """Asserts that every call fails with REPLICA_LOST and that no request is left."""
    embedding = engine.embed("e", EmbeddingRequest("e", (1,), Pooling.MEAN))
    for refused in (engine.check_health(), engine.generate("new", REQUEST, lambda _: None), embedding):
        with pytest.raises(ServeError) as raised:
            await refused
        assert raised.value.reason is Reason.REPLICA_LOST
    assert (engine.stats().running_requests, engine.stats().waiting_requests) == (0, 0)


async def test_close_of_a_dead_engine_leaves_no_process_and_no_shared_memory(parallel: Running) -> None:
    await parallel.engine.close()
    await parallel.engine.close()
    assert parallel.segments, "the engine used no shared memory"
    assert parallel.left() == ([], [])
