"""The cost of scaling policies at 99% attainment: ours, the peers and an oracle, on recorded and synthetic traffic, at three start-up
times.

Every policy gets its best knob for each workload, start-up time and seed. Seed 0 compares all peers. The other seeds compare the two
cheapest ones, around their best knobs for seed 0. The first minutes, in which policies learn their traffic, do not count.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from autoscaling.signals import Targets
from autoscaling.simulator import workloads
from autoscaling.simulator.compared_policies import COMPARED_POLICIES, ORACLE, OURS, PEERS
from autoscaling.simulator.comparison import ComparisonTask, Curve, Point, cheapest, compare, run
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.hardware import Hardware
from autoscaling.simulator.lower_bound import min_gpu_hours
from autoscaling.simulator.workloads import Bursts, Workload

SHARED = Path(__file__).parents[4] / "shared" / "data"
"""Folder with traces and calibration tables."""
STARTUPS_S = (30.0, 90.0, 240.0)
"""Start-up times, in seconds."""
SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the simulations."""
_DAY_S = 9000.0
_WARMUP_S = 900.0
_MAX_REPLICAS = 64
_PEERS_KEPT = 2
_FINE, _FINE_AROUND = 4, 2


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic and the initial size of the pool."""

    workload: Workload
    """The traffic."""
    initial_replicas: int
    """Number of replicas that are ready at the start."""


def traffic(name: str) -> Traffic:
    """Returns the traffic `azure`, `servegen` or `diurnal`. The first two require the shared traces."""
    if name == "azure":
        return Traffic(workloads.azure(SHARED / "traces" / "AzureLLMInferenceTrace_code.csv", scale=4), 8)
    if name == "servegen":
        return Traffic(workloads.servegen(SHARED / "traces", begin_s=6 * 86_400 + 5 * 3600, duration_s=2700, mean_rate=60.0), 8)
    return Traffic(workloads.diurnal(20.0, day_s=_DAY_S, bursts=Bursts(per_day=3)), 6)


TRAFFIC = ("azure", "servegen", "diurnal")
"""Names of the traffic."""


def simulation_config(startup_s: float, initial_replicas: int, seed: int = 0) -> SimulationConfig:
    """Returns a pool whose replicas run on two A100s each."""
    hardware = Hardware()
    spec = hardware.spec(1, _MAX_REPLICAS, startup_s, Targets())
    return SimulationConfig(spec, hardware.shape(), startup_s, initial_replicas=initial_replicas, warmup_s=_WARMUP_S, seed=seed)


@dataclass(frozen=True, slots=True)
class Compared:
    """The comparison for one workload, start-up time and seed."""

    seed: int
    """Seed of the simulations."""
    curves: Mapping[str, Curve]
    """Curves by policy."""
    attainment_fraction: float
    """The attainment that must be reached."""
    min_gpu_hours: float
    """Lower bound of the GPU-hours of any policy."""

    def best(self, name: str) -> Point | None:
        """Returns the cheapest sufficient point of a policy, or None."""
        return cheapest(self.curves[name].points, self.attainment_fraction)

    def best_peer(self) -> Point | None:
        """Returns the cheapest sufficient point of all peers, or None."""
        found = [self.best(name) for name in self.curves if name in PEERS]
        return cheapest([point for point in found if point is not None], self.attainment_fraction)

    def over(self, other: Point | None) -> float:
        """Returns our GPU-hours relative to another point. It is infinite if we miss the target, and 0 if only the other policy does."""
        ours = self.best(OURS)
        if ours is None:
            return float("inf")
        return ours.gpu_hours / other.gpu_hours if other else 0.0

    def over_lower_bound(self) -> float:
        """Returns our GPU-hours relative to the lower bound. It is infinite if we miss the target."""
        ours = self.best(OURS)
        return ours.gpu_hours / self.min_gpu_hours if ours else float("inf")


def measure(
    name: str,
    startup_s: float,
    executor: Executor,
    seeds: Sequence[int] = SEEDS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Compared]:
    """Returns one comparison for each seed."""
    given, found = traffic(name), list[Compared]()
    policies: Sequence[str] = [one for one in COMPARED_POLICIES if one in {OURS, ORACLE, *PEERS}]
    for seed in seeds:
        config = simulation_config(startup_s, given.initial_replicas, seed)
        fine = _FINE_AROUND if found else _FINE
        around = {name: best.knob for name in policies if (best := found[0].best(name))} if found else None
        curves = compare(policies, given.workload, config, executor, fine=fine, progress=progress, around=around)
        lower_bound = min_gpu_hours(given.workload.requests(seed), config.spec, config.warmup_s, given.workload.duration_s)
        found.append(Compared(seed, curves, config.spec.targets.attainment_fraction, lower_bound))
        if len(found) == 1:
            policies = [OURS, ORACLE, *_cheapest_peers(found[0])]
    return found


def _cheapest_peers(compared: Compared) -> list[str]:
    costs = {name: best.gpu_hours if (best := compared.best(name)) else float("inf") for name in PEERS}
    return sorted(costs, key=lambda name: costs[name])[:_PEERS_KEPT]


def over_best_peer(found: Sequence[Compared]) -> float:
    """Returns our GPU-hours relative to the best peer, as the median over the seeds."""
    return median(one.over(one.best_peer()) for one in found)


def over_oracle(found: Sequence[Compared]) -> float:
    """Returns our GPU-hours relative to the oracle, as the median over the seeds."""
    return median(one.over(one.best(ORACLE)) for one in found)


def reversals_per_day(found: Sequence[Compared], startup_s: float) -> float:
    """Returns the reversals of our cheapest point within two start-up times, as the median over the seeds.

    A recording or a shortened day counts as one day.
    """
    points = [one.best(OURS) for one in found]
    return median(point.result.reversals(2 * startup_s) if point else float("inf") for point in points)


def recovery_startups(startup_s: float, executor: Executor, seeds: Sequence[int] = SEEDS) -> float:
    """Returns the recovery time of our default after a fivefold step as a multiple of the start-up time, as the median over the seeds."""
    workload = workloads.step(before_rate=8.0, factor=5.0, step_s=1800.0, duration_s=3000.0)
    config = simulation_config(startup_s, initial_replicas=3)
    points = executor.map(run, [ComparisonTask(OURS, 1.0, workload, replace(config, seed=seed)) for seed in seeds])
    return median(point.result.recovery_s(1800.0, config.spec.targets) / startup_s for point in points)


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one policy with one seed: its cheapest sufficient point. The values are None if no point is sufficient."""

    seed: int
    """Seed of the simulations."""
    policy: str
    """Name of the policy."""
    gpu_hours: float | None
    """GPU-hours."""
    attainment_fraction: float | None
    """Fraction of requests within both targets."""
    knob: float | None
    """Value of the policy's knob."""
    reversals: int | None
    """Reversals within two start-up times."""
    min_gpu_hours: float
    """Lower bound of the GPU-hours of any policy."""
    curve: tuple[tuple[float, float, float], ...]
    """All points: knob, GPU-hours and attainment."""


def rows(compared: Compared, startup_s: float) -> list[Row]:
    """Returns one row for each policy."""
    found = []
    for name, curve in compared.curves.items():
        best = compared.best(name)
        points = tuple((point.knob, point.gpu_hours, point.attainment_fraction) for point in curve.points)
        found.append(
            Row(
                compared.seed,
                name,
                best.gpu_hours if best else None,
                best.attainment_fraction if best else None,
                best.knob if best else None,
                best.result.reversals(2 * startup_s) if best else None,
                compared.min_gpu_hours,
                points,
            )
        )
    return found


def table(name: str, startup_s: float, found: Sequence[Compared]) -> list[str]:
    """Returns lines with the ratios over all seeds, the lower bound, and the policies with the first seed."""
    over_lower_bound = median(one.over_lower_bound() for one in found)
    ratios = f"{over_best_peer(found):.2f} of the best peer's GPU-hours, {over_oracle(found):.2f} of the oracle's"
    lines = [
        f"{name} traffic, start-up time {startup_s:.0f} s: {ratios}, {reversals_per_day(found, startup_s):.0f} reversals",
        f"The lower bound is {found[0].min_gpu_hours:.1f} GPU-hours; ours takes {over_lower_bound:.2f} times that (median over seeds).",
    ]
    for row in rows(found[0], startup_s):
        text = (
            f"{row.gpu_hours:7.1f} GPU-h at {row.attainment_fraction:.4f}, {COMPARED_POLICIES[row.policy].knob} {row.knob:.3g}, "
            f"{row.reversals} reversals"
            if row.gpu_hours is not None
            else f"misses the target; attainment is {max(point[2] for point in row.curve):.4f} at best"
        )
        lines.append(f"  {row.policy:24} {text}")
    return lines


def has_shared_data() -> bool:
    """Returns whether the recorded traffic is available."""
    return (SHARED / "traces").is_dir()
