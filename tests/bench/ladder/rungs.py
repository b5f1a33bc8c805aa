"""The rungs. Each is a System that starts and stops its processes.

1. `grpc.aio`: a bare grpc.aio server with the engine in its process. 2. `+ gateway`: the gateway with the engine in its process, without a
link. 3. `+ link`: gateway and replica as separate processes, connected by the link. A router connects them and then stops, so the gateway
grants leases itself, as in any cluster whose router is unavailable. 4. `+ router`: gateway, replica and router as separate processes. 5.
`everything`: `neox-serve up` on Ray.
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
"""Names of the rungs."""
TTFT_S = 0.02
"""Time to first token of the fake engine, in seconds."""
ITL_S = 0.02
"""Time between two tokens of a stream of the fake engine, in seconds, independent of the batch."""

_START_S = 60.0


def values(*, itl_s: float = ITL_S) -> Values:
    """Returns the settings of every rung: the fake engine with timestamps as text."""
    fake = {"ttft_s": TTFT_S, "itl_s": itl_s, "itl_per_request_s": 0.0, "timestamp_text": True}
    return {"generation": {"engine": {"kind": "fake", "max_num_seqs": 4096, "fake": fake}}}


@dataclass(frozen=True, slots=True)
class LocalRung:
    """A rung of local processes without Ray."""

    name: str
    """Name of the rung."""
    hosts: tuple[str, ...]
    """Modules of `hosts` that run as processes. The last one serves clients."""
    values: Values
    """Settings."""
    router_leaves: bool = False
    """Whether the router stops once the gateway and the replica are connected."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Starts all processes at once. Each waits for the router. Raises StartError if one does not start."""
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
    """Returns all rungs, from the lowest to the highest."""
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
"""Roles of the processes: `server` is the bare gRPC server, and `ray rest` all processes of Ray except the gateway, replica and router."""


def role_of(command_line: Sequence[str]) -> str:
    """Returns the role of a process."""
    shown = " ".join(command_line)
    return next((role for title, role in _ROLE_OF_TITLE.items() if title in shown), RAY_REST)


def _host(part: str, settings_file: Path, folder: Path) -> AbstractContextManager[psutil.Popen]:
    command = ["-m", f"tests.bench.ladder.hosts.{part}", str(settings_file), str(folder)]
    return system_process(command, {}, _log(folder, part))


def _log(folder: Path, part: str) -> Path:
    return folder / f"{part}.log"
