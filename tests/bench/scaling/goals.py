"""Goals of the scaling policies, the simulator and the planner. LONG_GOALS take longer than ten minutes each."""

import time
from collections.abc import Iterator
from functools import cache

from autoscaling.signals import Targets
from autoscaling.simulator import workloads
from autoscaling.simulator.calibration import LATENCIES, TENSOR_PARALLEL_SIZES, fit, read_latencies
from autoscaling.simulator.cluster import simulate
from autoscaling.simulator.compared_policies import static
from autoscaling.simulator.comparison import process_pool
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.hardware import Hardware
from cluster.planning.plan import NEOX_20B, Layout, Load, PlanRequest, kv_cache_tokens
from neox_serve.model.memory import Quantization, parameters, weight_bytes
from tests.bench.goal import Goal
from tests.bench.scaling import runs as scaling

_PROCESSES = 2
_KNOWN_SEQUENCES = {
    ("a100-80", "none"): (15, 49, 116, 251),
    ("a100-80", "int8"): (24, 58, 125, 260),
    ("a100-80", "int4"): (28, 62, 130, 265),
    ("a10", "none"): (None, None, 17, 52),
}
"""Sequences of 2048 tokens in GPT-NeoX-20B's KV cache at 0.90 of the memory with 1.5 GiB kept free, for tensor-parallel sizes 1, 2, 4 and
8."""


def max_planning_error() -> float:
    """Returns the largest relative error of the planner's results for GPT-NeoX-20B. Sequences are rounded down."""
    request = PlanRequest(NEOX_20B, Load(1, 600, 200), {"a100-80": 8, "a10": 8}, 2048)
    errors = [abs(parameters(NEOX_20B) / 20_554_567_680 - 1), abs(weight_bytes(NEOX_20B) / 41.1e9 - 1)]
    for (gpu, quantization), known in _KNOWN_SEQUENCES.items():
        for size, expected in zip((1, 2, 4, 8), known, strict=True):
            if expected is not None:
                found = kv_cache_tokens(request, Layout(gpu, Quantization(quantization), size, 1)) // 2048
                errors.append(abs(found / expected - 1))
    return max(errors)


def held_out_error() -> float:
    """Returns the mean relative error of step times on held-out rows of the table, the largest over the tensor-parallel sizes."""
    table = scaling.SHARED / "calibration" / LATENCIES
    return max(fit(read_latencies(table, size)).held_out_error_fraction for size in TENSOR_PARALLEL_SIZES)


def hour_of_1000_replicas_s() -> float:
    """Returns how long one core takes to simulate an hour of 1,000 busy GPT-NeoX-20B replicas, in seconds."""
    hardware = Hardware()
    spec = hardware.spec(1000, 1000, 60.0, Targets())
    workload = workloads.diurnal(900.0, day_s=3600.0, depth=0.3, bursts=workloads.Bursts(per_day=2))
    config = SimulationConfig(spec, hardware.shape(), 60.0, initial_replicas=1000)
    begin_s = time.perf_counter()
    simulate(workload.requests(0), static(1000), config, 3600.0)
    return time.perf_counter() - begin_s


@cache
def _recovery(startup_s: float) -> float:
    with process_pool(_PROCESSES) as executor:
        return scaling.recovery_startups(startup_s, executor)


@cache
def _compared(name: str, startup_s: float) -> tuple[scaling.Compared, ...]:
    if name != "diurnal" and not scaling.has_shared_data():
        raise FileNotFoundError(f"{scaling.SHARED}: the recorded traffic is missing")
    with process_pool(_PROCESSES) as executor:
        return tuple(scaling.measure(name, startup_s, executor))


def _goals() -> Iterator[Goal]:
    yield Goal(
        "plan.largest_error", "largest relative error of the planner's results for GPT-NeoX-20B", "<=", 0.02, lambda _: max_planning_error()
    )
    yield Goal("scaling.held_out_error", "mean relative error of step times on held-out rows", "<", 0.1, lambda _: held_out_error())
    for startup_s in scaling.STARTUPS_S:
        yield Goal(
            f"scaling.recovery_{startup_s:.0f}s",
            f"recovery from a fivefold step as a multiple of the start-up time, {startup_s:.0f} s",
            "<=",
            1.5,
            lambda _, startup_s=startup_s: _recovery(startup_s),  # type: ignore[misc]
        )


def _long_goals() -> Iterator[Goal]:
    yield Goal(
        "scaling.hour_of_1000_replicas_s",
        "time to simulate an hour of 1,000 replicas on one core, s",
        "<",
        300.0,
        lambda _: hour_of_1000_replicas_s(),
    )
    for name in scaling.TRAFFIC:
        for startup_s in scaling.STARTUPS_S:
            case = f"{name} traffic, start-up time {startup_s:.0f} s"
            yield Goal(
                f"scaling.{name}_{startup_s:.0f}s_over_best_peer",
                f"GPU-hours at 99% attainment relative to the best peer, {case}",
                "<=",
                0.85,
                lambda _, name=name, startup_s=startup_s: scaling.over_best_peer(_compared(name, startup_s)),  # type: ignore[misc]
            )
            yield Goal(
                f"scaling.{name}_{startup_s:.0f}s_over_oracle",
                f"GPU-hours at 99% attainment relative to the oracle, {case}",
                "<=",
                1.25,
                lambda _, name=name, startup_s=startup_s: scaling.over_oracle(_compared(name, startup_s)),  # type: ignore[misc]
            )
            yield Goal(
                f"scaling.{name}_{startup_s:.0f}s_reversals",
                f"reversals within two start-up times, per day, {case}",
                "<=",
                1.0,
                lambda _, name=name, startup_s=startup_s: scaling.reversals_per_day(_compared(name, startup_s), startup_s),  # type: ignore[misc]
            )


GOALS = tuple(_goals())
"""Goals of at most a few minutes each."""
LONG_GOALS = tuple(_long_goals())
"""Goals that take longer than ten minutes each."""
