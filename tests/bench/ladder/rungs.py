"""The rungs, each a System that starts its processes and stops them.

1. `grpc.aio`: a bare grpc.aio server that holds the engine.
2. `+ gateway`: the gateway with the engine in its own process, without a link.
3. `+ link`: gateway and replica, each a process, joined by the link. A router introduces them and then leaves, so the gateway goes on as it
   does in any cluster whose router is gone: it leases by itself.
4. `+ router`: gateway, replica and router, each a process.
5. `everything`: `neox-serve up` on Ray.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from neox_serve.loadgen.processes import family, stop
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec
from neox_serve.settings import restore
from tests.bench.engines.systems import NeoxServe, Running, System, Values, cluster_values
from tests.bench.ladder.hosts.hosting import address_file
from tests.bench.processes import system_process, wait_for
from tests.clusters import GATEWAY as RAY_GATEWAY
from tests.clusters import GENERATION as RAY_REPLICA
from tests.clusters import ROUTER as RAY_ROUTER

BARE, GATEWAY, LINK, ROUTER, EVERYTHING = "grpc.aio", "+ gateway", "+ link", "+ router", "everything"

TTFT_S = 0.02
ITL_S = 0.02
"""50 tokens a second and stream, whatever the batch."""

_START_S = 60.0


def values(*, itl_s: float = ITL_S) -> Values:
    """Settings of every rung: the fake engine, stamping."""
    fake = {"ttft_s": TTFT_S, "itl_s": itl_s, "itl_per_request_s": 0.0, "timestamp_text": True}
    return {"generation": {"engine": {"kind": "fake", "max_num_seqs": 4096, "fake": fake}}}


@dataclass(frozen=True, slots=True)
class LocalRung:
    """Processes of this machine without Ray. hosts: modules by part; the last serves clients. router_leaves: once all are linked."""

    name: str
    hosts: tuple[str, ...]
    values: Values
    router_leaves: bool = False

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Starts all at once: each looks for the router until it is there. Raises StartError."""
        settings = cluster_values(self.values)
        front = self.hosts[-1]
        settings_file, ready = folder / "settings.json", address_file(folder, front)
        settings_file.write_text(json.dumps(restore(settings).model_dump(mode="json")), encoding="utf-8")
        with ExitStack() as to_end:
            processes = {part: to_end.enter_context(_host(part, settings_file, folder)) for part in self.hosts}
            wait_for(ready.exists, processes[front], _log(folder, front), _START_S, self.name)
            if self.router_leaves:
                stop(processes.pop("router"))
            address = ready.read_text(encoding="utf-8")
            yield Running(GatewaySpec(address), lambda: [each for process in processes.values() for each in family(process)])


def all_rungs(of: Values) -> tuple[System, ...]:
    """Lowest first."""
    cluster = ("router", "replica", "gateway")
    return (
        LocalRung(BARE, ("bare",), of),
        LocalRung(GATEWAY, ("engine_gateway",), of),
        LocalRung(LINK, cluster, of, router_leaves=True),
        LocalRung(ROUTER, cluster, of),
        NeoxServe(of, EVERYTHING),
    )


_ROLE_OF_TITLE = {
    "ladder.hosts.bare": "server",
    "ladder.hosts.engine_gateway": "gateway",
    "ladder.hosts.gateway": "gateway",
    "ladder.hosts.replica": "replica",
    "ladder.hosts.router": "router",
    RAY_GATEWAY: "gateway",
    RAY_REPLICA: "replica",
    RAY_ROUTER: "router",
}
CLIENT, RAY_REST = "client", "ray rest"
ROLES = (CLIENT, "server", "gateway", "replica", "router", RAY_REST)
"""What the processes of all rungs do; `server` is the bare one, and `ray rest` all that Ray runs beside our three."""


def role_of(command_line: Sequence[str]) -> str:
    """The role of a system's process."""
    shown = " ".join(command_line)
    return next((role for title, role in _ROLE_OF_TITLE.items() if title in shown), RAY_REST)


def _host(part: str, settings_file: Path, folder: Path) -> AbstractContextManager[psutil.Popen]:
    command = ["-m", f"tests.bench.ladder.hosts.{part}", str(settings_file), str(folder)]
    return system_process(command, {}, _log(folder, part))


def _log(folder: Path, part: str) -> Path:
    return folder / f"{part}.log"
