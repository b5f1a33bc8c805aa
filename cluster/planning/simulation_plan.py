"""What `neox-serve simulate` is asked for, checked: the traffic and the pool that is to serve it."""

from dataclasses import dataclass
from pathlib import Path

from autoscaling.signals import Targets
from autoscaling.simulator import workloads
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.hardware import Hardware
from autoscaling.simulator.workloads import Bursts, Workload


class OptionError(Exception):
    """An option that cannot be. option: its name."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """workload: diurnal or step, unless a recording is given. rate: mean requests a second; not of a trace, which has its own."""

    workload: str
    trace: Path | None
    scale: float
    tenants: Path | None
    begin_s: float
    rate: float
    duration_s: float
    step_factor: float


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The pool and what is promised of it; times in seconds."""

    gpu: str
    tensor_parallel_size: int
    calibration: Path | None
    min_replicas: int
    max_replicas: int
    initial_replicas: int | None
    startup_s: float
    failures_per_gpu_hour: float
    ttft_s: float
    tpot_s: float
    attainment_fraction: float


def traffic(options: TrafficOptions) -> Workload:
    """The requests. Raises OptionError."""
    for option, value in (("--rate", options.rate), ("--duration", options.duration_s), ("--step-factor", options.step_factor)):
        if value <= 0:
            raise OptionError(option, f"must be positive, got {value:g}")
    if options.trace is not None and options.tenants is not None:
        raise OptionError("--trace", "does not go with --tenants")
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


def setting(options: PoolOptions, warmup_s: float, duration_s: float, seed: int) -> SimulationConfig:
    """The pool. Raises OptionError."""
    if warmup_s >= duration_s:
        raise OptionError("--warm-up", f"must be shorter than the traffic, {duration_s:.0f} s, got {warmup_s:g}")
    initial = max(1, options.min_replicas) if options.initial_replicas is None else options.initial_replicas
    if initial > options.max_replicas:
        raise OptionError("--initial", f"must be at most --max, {options.max_replicas}, got {initial}")
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
