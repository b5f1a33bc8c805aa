"""The ladder's client: a separate load generator for each load, with the CPU time of each kind of process."""

import contextlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from neox_serve.loadgen.generator import load_generator
from neox_serve.loadgen.processes import CpuMeter
from neox_serve.loadgen.records import Record
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec
from tests.bench.engines.systems import Running
from tests.bench.ladder.rungs import CLIENT, ROLES, role_of
from tests.bench.ladder.stamped_target import StampedSpec
from tests.bench.metering import run_metered
from tests.bench.processes import importing_tests
from tests.bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A load to run."""

    workload: Workload
    """The requests."""
    channels: int = 1
    """Number of connections."""
    stalled: bool = False
    """Whether an additional client opens a stream and never reads from it."""
    ramp_tokens: int = 0
    """Number of first tokens of each response whose lag is ignored, because all streams start at once, unlike real ones."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of a load."""

    records: list[Record]
    """Records of all requests."""
    lags_s: "array[float]"
    """Lag of every token after the ramp, in no particular order."""
    cpu_s: Mapping[str, float]
    """CPU seconds of the processes by role."""


class Client:
    """A client of one running system. Its log is load.log in `folder`."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running = running
        self._folder = folder

    def run(self, order: LoadOrder, on_progress: Callable[[int], None]) -> Sample:
        """Runs a load. Raises StartError if the load generator ends unexpectedly."""
        gateway = self._running.target
        assert isinstance(gateway, GatewaySpec)
        spec = StampedSpec(replace(gateway, channels=order.channels), self._folder / "lags", order.ramp_tokens, order.stalled)
        environment = {**self._running.client_environment, **importing_tests()}
        with load_generator(spec, self._folder, environment) as generator:
            meters = {CLIENT: CpuMeter(lambda: [generator.process]), **role_meters(self._running)}
            records, cpu_s = run_metered(generator, order.workload.load(), meters, on_progress)
        return Sample(records, spec.lags_s(), cpu_s)


def role_meters(running: Running) -> dict[str, CpuMeter]:
    """Returns a CPU meter for each role of a system's processes except the client."""
    return {role: _meter(running, role) for role in ROLES if role != CLIENT}


def _meter(running: Running, role: str) -> CpuMeter:
    processes = running.processes or list
    return CpuMeter(lambda: [process for process in processes() if role_of(_command_line(process)) == role])


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
