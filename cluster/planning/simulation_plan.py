"""Options of `neox-serve simulate`, validated and turned into traffic and a simulated pool."""

from dataclasses import dataclass
from pathlib import Path

from autoscaling.signals import Targets
from autoscaling.simulator import workloads
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.hardware import Hardware
from autoscaling.simulator.workloads import Bursts, Workload


class OptionError(Exception):
    """An option has an invalid value. `option` is its name on the command line."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """The options that describe the traffic."""

    workload: str
    """Synthetic traffic, "diurnal" or "step". It is used if neither `trace` nor `tenants` is given."""
    trace: Path | None
    """A recording in Azure's format."""
    scale: float
    """Factor of the number of requests in `trace`."""
    tenants: Path | None
    """A folder with ServeGen's tables."""
    begin_s: float
    """Start within the recording of `tenants`, in seconds."""
    rate: float
    """Mean rate in requests per second; for "step", the rate before the jump. A trace has its own rate."""
    duration_s: float
    """Length of the traffic, in seconds."""
    step_factor: float
    """Factor of the rate after the jump."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The options that describe the pool and its targets."""

    gpu: str
    """Type of the GPUs."""
    tensor_parallel_size: int
    """Number of GPUs of a replica."""
    calibration: Path | None
    """Folder with calibration tables; None uses the stored step times."""
    min_replicas: int
    """Minimum number of replicas."""
    max_replicas: int
    """Maximum number of replicas."""
    initial_replicas: int | None
    """Number of replicas at the start; None means the minimum, at least 1."""
    startup_s: float
    """Time to start a replica, in seconds."""
    failures_per_gpu_hour: float
    """Rate at which GPUs fail."""
    ttft_s: float
    """Maximum time to first token, in seconds."""
    tpot_s: float
    """Maximum time per output token, in seconds."""
    attainment_fraction: float
    """Fraction of requests that must be within both targets."""


def traffic(options: TrafficOptions) -> Workload:
    """Returns the traffic. Raises OptionError if an option is invalid or a file cannot be read."""
    for option, value in (("--rate", options.rate), ("--duration", options.duration_s), ("--step-factor", options.step_factor)):
        if value <= 0:
            raise OptionError(option, f"{value:g} is invalid; it must be positive")
    if options.trace is not None and options.tenants is not None:
        raise OptionError("--trace", "cannot be combined with --tenants")
    try:
        if options.trace is not None:
            return workloads.azure(options.trace, options.scale)
        if options.tenants is not None:
            return workloads.servegen(options.tenants, options.begin_s, options.duration_s, options.rate)
    except (OSError, ValueError) as error:
        raise OptionError("--trace" if options.trace is not None else "--tenants", str(error)) from error
    if options.workload == "step":
        return workloads.step(options.rate, options.step_factor, options.duration_s / 2, options.duration_s)
    return workloads.diurnal(options.rate, day_s=options.duration_s, bursts=Bursts(per_day=3))


def simulation_config(options: PoolOptions, warmup_s: float, duration_s: float, seed: int) -> SimulationConfig:
    """Returns the simulated pool. Raises OptionError if an option is invalid or a calibration table cannot be read."""
    if warmup_s >= duration_s:
        raise OptionError("--warm-up", f"{warmup_s:g} is invalid; it must be less than the length of the traffic, {duration_s:.0f} s")
    initial = max(1, options.min_replicas) if options.initial_replicas is None else options.initial_replicas
    if initial > options.max_replicas:
        raise OptionError("--initial", f"{initial} is invalid; it must be at most --max, {options.max_replicas}")
    try:
        targets = Targets(options.ttft_s, options.tpot_s, options.attainment_fraction)
        hardware = Hardware(options.gpu, options.tensor_parallel_size, options.calibration)
        spec = hardware.spec(options.min_replicas, options.max_replicas, options.startup_s, targets)
        shape = hardware.shape()
    except (OSError, ValueError) as error:
        raise OptionError("--max" if "min <= max" in str(error) else "--gpu", str(error)) from error
    return SimulationConfig(
        spec,
        shape,
        options.startup_s,
        initial_replicas=initial,
        failures_per_gpu_hour=options.failures_per_gpu_hour,
        warmup_s=warmup_s,
        seed=seed,
    )
