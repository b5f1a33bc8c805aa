"""`neox-serve bench` in a process of its own, against a real gRPC server whose answers are scripted."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from neox_serve.core.errors import Reason, ServeError
from tests.fakes.certificates import make_authority
from tests.fakes.scripted_gateway import ScriptedGateway

SMALL = ("--input-tokens", "4", "--output-tokens", "3", "--warm-up", "1")


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as scripted:
        yield scripted


async def start(gateway: ScriptedGateway, *arguments: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "cluster.cli", "bench", "--address", gateway.address, *SMALL, *arguments]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


async def call(gateway: ScriptedGateway, *arguments: str) -> tuple[int | None, str, str]:
    """Exit code, stdout, stderr."""
    process = await start(gateway, *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def nothing() -> None:
    """A step without effect."""


async def test_bench_shows_and_writes_figures(gateway: ScriptedGateway, tmp_path: Path) -> None:
    written, drawn = tmp_path / "r.json", tmp_path / "r.svg"
    options = ("--requests", "5", "--streams", "2", "--metadata", "X-Key=k", "--slo-e2el-ms", "1e9")
    code, out, err = await call(gateway, *options, "--json", str(written), "--plot", str(drawn))
    assert (code, err) == (0, "")
    assert ("scripted on" in out, "5 completed, 0 failed" in out, "TTFT" in out) == (True, True, True)
    figures = json.loads(written.read_text())
    assert (figures["completed"], figures["max_concurrency"], figures["total_input_tokens"]) == (5, 2, 20)
    assert figures["request_goodput"] == figures["request_throughput"]
    assert b"<svg" in drawn.read_bytes()
    streamed = [received for received in gateway.received if received.method == "StreamGenerate"]
    assert len(streamed) == 6
    assert {received.metadata["x-key"] for received in gateway.received} == {"k"}
    assert {received.request.parameters.stopping.max_tokens for received in streamed[1:]} == {3}


async def test_bench_open_loop_reports_the_offered_rate(gateway: ScriptedGateway) -> None:
    code, out, _ = await call(gateway, "--rate", "500", "--requests", "5", "--burstiness", "0")
    assert (code, "of 500.00 offered" in out, "sent late by" in out) == (0, True, True)


async def test_bench_with_failed_requests_exits_with_1_and_lists_the_errors(gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", *[ServeError(Reason.OVERLOADED, "full")] * 3)
    code, out, err = await call(gateway, "--requests", "5", "--streams", "1")
    assert (code, "3 completed, 2 failed" in out) == (1, True)
    assert "2 of 5 requests failed:\n  2 x UNAVAILABLE: full" in err


async def test_bench_interrupted_reports_completed_requests_and_exits_with_130(gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", nothing, nothing, ServeError(Reason.OVERLOADED, "full"), gateway.hang)
    process = await start(gateway, "--requests", "4", "--streams", "1")
    await gateway.wait_for_calls(5)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, b"Traceback" in err) == (130, False)
    assert b"1 completed, 1 failed" in out
    assert b"1 x UNAVAILABLE: full" in err
    assert b"Interrupted: 1 requests in flight were cut off" in out


async def test_bench_over_tls_trusts_the_given_root(tmp_path: Path) -> None:
    root, pair = make_authority(tmp_path, ("localhost",))
    credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.certificate.read_bytes())])
    async with ScriptedGateway(credentials=credentials) as gateway:
        gateway.address = gateway.address.replace("127.0.0.1", "localhost")
        code, out, _ = await call(gateway, "--requests", "2", "--streams", "1", "--tls-ca", str(root))
    assert (code, "2 completed, 0 failed" in out) == (0, True)
