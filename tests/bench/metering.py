"""Runs of a load with measurements of CPU time."""

from collections.abc import Callable, Mapping

from neox_serve.loadgen.generator import LoadGenerator
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.processes import CpuMeter
from neox_serve.loadgen.records import Record

_SILENCE_S = 120.0


def run_metered(
    generator: LoadGenerator, load: Load, meters: Mapping[str, CpuMeter], on_progress: Callable[[int], None]
) -> tuple[list[Record], dict[str, float]]:
    """Runs a load. Return its records, and the CPU seconds of each meter until the end of the last request.

    Raises StartError if the load generator fails.
    """
    cpu_s: dict[str, float] = {}

    def ended() -> None:
        cpu_s.update((name, meter.read()) for name, meter in meters.items())

    for meter in meters.values():
        meter.start()
    return generator.run(load, on_progress, ended, _SILENCE_S).records, cpu_s
