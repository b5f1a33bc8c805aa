"""The programs of docs/examples/clients run as the page on clients says, against a real gateway over fake engines."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neox_serve.core.errors import Reason, ServeError
from tests.fakes.scripted_gateway import ScriptedGateway
from tests.fakes.whole_path import whole_path

ROOT = Path(__file__).parents[3]
CLIENTS = ROOT / "docs" / "examples" / "clients"
PROTOS = ROOT / "protos"


async def output_of(*command: str | Path) -> str:
    """Standard output of a program, which must succeed."""
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its packages installed beside it."""
    if shutil.which("npm") is None:
        pytest.skip("Node's npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("client.mjs", "package.json"):
        shutil.copy(CLIENTS / "node" / name, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run(command, cwd=folder, check=True, timeout=180)
    return folder / "client.mjs"


async def test_node_example_completes_streams_and_explains_errors(node_client: Path) -> None:
    async with whole_path() as path:
        output = await output_of("node", node_client, f"127.0.0.1:{path.server.port}", PROTOS)
        await path.nothing_left()
    assert "final: FINISH_REASON_LENGTH 16 tokens" in output
    assert "error: INVALID_ARGUMENT INVALID_ARGUMENT parameters.sampling.temperature" in output
    assert "deadline: DEADLINE_EXCEEDED" in output


async def test_node_example_waits_as_long_as_the_server_says(node_client: Path) -> None:
    async with ScriptedGateway() as gateway:
        gateway.script("Generate", ServeError(Reason.OVERLOADED, "busy", retry_after_s=0.05))
        output = await output_of("node", node_client, gateway.address, PROTOS)
        first, second = gateway.requests("Generate")[:2]
    assert output.startswith('retry in 50 ms\ncompletion: "DEF FIBONACCI(N):"')
    assert first.request_id == second.request_id != ""


async def test_python_example_completes_streams_and_explains_errors() -> None:
    async with whole_path() as path:
        output = await output_of(sys.executable, CLIENTS / "python" / "client.py", f"127.0.0.1:{path.server.port}")
        await path.nothing_left()
    assert "final: length 16 tokens" in output
    assert "error: INVALID_ARGUMENT parameters.sampling.temperature" in output
    assert "partial: deadline" in output


async def test_reflection_example_needs_no_generated_code() -> None:
    async with whole_path() as path:
        output = await output_of(sys.executable, CLIENTS / "python" / "reflection.py", f"127.0.0.1:{path.server.port}")
    assert "neox_serve.v1.InferenceService" in output
    assert "completion: " in output
    assert 'error: INVALID_ARGUMENT {"reason": "INVALID_ARGUMENT", "domain": "neox-serve"' in output
    assert '"field": "parameters.sampling.temperature"' in output
