"""Ten thousand idle connections: other calls are served, and all resources are returned."""

import asyncio
import gc
import resource
import sys

import psutil
import pytest

from neox_serve.client import AsyncClient
from tests.fakes.gateways import running_gateway
from tests.fakes.link_cluster import until
from tests.fakes.scripted_dispatcher import ScriptedDispatcher

CONNECTIONS = 10_000
MAX_BYTES_EACH = 64 * 1024
# Opens connections that send only the HTTP/2 preface, reports that they are open, and holds them until its input ends.
CROWD = """
import resource, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
hello = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
crowd = []
for number in range(count):
    one = socket.create_connection((f"127.0.0.{1 + number % 20}", port))
    one.sendall(hello)
    crowd.append(one)
print("open", flush=True)
sys.stdin.read()
"""


async def test_ten_thousand_idle_connections_do_not_stop_other_calls() -> None:
    _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max_files < CONNECTIONS + 1_000:
        pytest.skip(f"this user may have {max_files} files open")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], CONNECTIONS + 1_000), max_files))
    gateway = {"host": "0.0.0.0"}
    async with (
        running_gateway(ScriptedDispatcher(), gateway=gateway, access={"allow_anonymous": True}) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        await client.generate("a")
        gc.collect()
        empty = psutil.Process().memory_info().rss
        pipe = asyncio.subprocess.PIPE
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, str(server.port), str(CONNECTIONS), stdin=pipe, stdout=pipe
        )
        assert crowd.stdout is not None
        assert await asyncio.wait_for(crowd.stdout.readline(), 60) == b"open\n"
        await until(lambda: server.connections >= CONNECTIONS, 60)
        each = (psutil.Process().memory_info().rss - empty) / CONNECTIONS
        for _ in range(20):
            await client.generate("a", timeout_s=1)
        assert each < MAX_BYTES_EACH
        await asyncio.wait_for(crowd.communicate(b""), 30)
        await until(lambda: server.connections <= 2, 60)
        await client.generate("a", timeout_s=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
