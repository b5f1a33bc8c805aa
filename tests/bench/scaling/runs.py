"""What scaling policies cost at 99 % attainment: ours, its peers and an oracle, on recorded and made-up traffic, at three start-up times.

Every policy is given the knob that suits it best on each workload, start-up time and seed. Seed 0 tries all peers; further seeds those two
that were cheapest, around the knobs that suited them there. Nothing that happens in the first minutes counts, in which policies get to know
their traffic.
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
STARTUPS_S = (30.0, 90.0, 240.0)
SEEDS = (0, 1, 2, 3, 4)
_DAY_S = 9000.0
_WARMUP_S = 900.0
_MAX_REPLICAS = 64
_PEERS_KEPT = 2
_FINE, _FINE_AROUND = 4, 2


@dataclass(frozen=True, slots=True)
class Traffic:
    """A workload, and replicas that are there when it begins."""

    workload: Workload
    initial_replicas: int


def traffic(name: str) -> Traffic:
    """`azure`, `servegen` or `diurnal`. The first two need the shared traces."""
    if name == "azure":
        return Traffic(workloads.azure(SHARED / "traces" / "AzureLLMInferenceTrace_code.csv", scale=4), 8)
    if name == "servegen":
        return Traffic(workloads.servegen(SHARED / "traces", begin_s=6 * 86_400 + 5 * 3600, duration_s=2700, mean_rate=60.0), 8)
    return Traffic(workloads.diurnal(20.0, day_s=_DAY_S, bursts=Bursts(per_day=3)), 6)


TRAFFIC = ("azure", "servegen", "diurnal")


def setting(startup_s: float, initial_replicas: int, seed: int = 0) -> SimulationConfig:
    """A pool on pairs of A100s."""
    hardware = Hardware()
    spec = hardware.spec(1, _MAX_REPLICAS, startup_s, Targets())
    return SimulationConfig(spec, hardware.shape(), startup_s, initial_replicas=initial_replicas, warmup_s=_WARMUP_S, seed=seed)


@dataclass(frozen=True, slots=True)
class Compared:
    """One workload and start-up time with one seed: the points that keep the promise, by policy; None where none did.

    min_gpu_hours: that computing alone takes.
    """

    seed: int
    curves: Mapping[str, Curve]
    promise: float
    min_gpu_hours: float

    def best(self, name: str) -> Point | None:
        """A policy's cheapest."""
        return cheapest(self.curves[name].points, self.promise)

    def best_peer(self) -> Point | None:
        """The cheapest of all peers."""
        found = [self.best(name) for name in self.curves if name in PEERS]
        return cheapest([point for point in found if point is not None], self.promise)

    def over(self, other: Point | None) -> float:
        """Our GPU-hours over another's; infinite where we keep no promise, 0 where only the other does not."""
        ours = self.best(OURS)
        if ours is None:
            return float("inf")
        return ours.gpu_hours / other.gpu_hours if other else 0.0

    def over_least(self) -> float:
        """Our GPU-hours over what computing alone takes; infinite where we keep no promise."""
        ours = self.best(OURS)
        return ours.gpu_hours / self.min_gpu_hours if ours else float("inf")


def measure(
    name: str,
    startup_s: float,
    executor: Executor,
    seeds: Sequence[int] = SEEDS,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[Compared]:
    """One comparison for each seed."""
    given, found = traffic(name), list[Compared]()
    policies: Sequence[str] = [one for one in COMPARED_POLICIES if one in {OURS, ORACLE, *PEERS}]
    for seed in seeds:
        which = setting(startup_s, given.initial_replicas, seed)
        fine = _FINE_AROUND if found else _FINE
        around = {name: best.knob for name in policies if (best := found[0].best(name))} if found else None
        curves = compare(policies, given.workload, which, executor, fine=fine, progress=progress, around=around)
        least = min_gpu_hours(given.workload.requests(seed), which.spec, which.warmup_s, given.workload.duration_s)
        found.append(Compared(seed, curves, which.spec.targets.attainment_fraction, least))
        if len(found) == 1:
            policies = [OURS, ORACLE, *_cheapest_peers(found[0])]
    return found


def _cheapest_peers(compared: Compared) -> list[str]:
    costs = {name: best.gpu_hours if (best := compared.best(name)) else float("inf") for name in PEERS}
    return sorted(costs, key=lambda name: costs[name])[:_PEERS_KEPT]


def over_best_peer(found: Sequence[Compared]) -> float:
    """Median over seeds."""
    return median(one.over(one.best_peer()) for one in found)


def over_oracle(found: Sequence[Compared]) -> float:
    """Median over seeds."""
    return median(one.over(one.best(ORACLE)) for one in found)


def reversals_a_day(found: Sequence[Compared], startup_s: float) -> float:
    """Of our cheapest point, within two start-ups; median over seeds. A recording, or a day made short, counts as one day."""
    points = [one.best(OURS) for one in found]
    return median(point.result.reversals(2 * startup_s) if point else float("inf") for point in points)


def recovery_startups(startup_s: float, executor: Executor, seeds: Sequence[int] = SEEDS) -> float:
    """From a fivefold step until attainment is back, in start-ups; our default, median over seeds."""
    workload = workloads.step(before_rate=8.0, factor=5.0, step_s=1800.0, duration_s=3000.0)
    which = setting(startup_s, initial_replicas=3)
    points = executor.map(run, [ComparisonTask(OURS, 1.0, workload, replace(which, seed=seed)) for seed in seeds])
    return median(point.result.recovery_s(1800.0, which.spec.targets) / startup_s for point in points)


@dataclass(frozen=True, slots=True)
class Row:
    """A policy with one seed: its cheapest point that keeps the promise, None where none does. curve: knob, GPU-hours, attainment."""

    seed: int
    policy: str
    gpu_hours: float | None
    attainment_fraction: float | None
    knob: float | None
    reversals: int | None
    min_gpu_hours: float
    curve: tuple[tuple[float, float, float], ...]


def rows(compared: Compared, startup_s: float) -> list[Row]:
    """All policies."""
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
    """Lines for people: the ratios over all seeds, what computing alone takes, and the policies with the first seed."""
    least = median(one.over_least() for one in found)
    ratios = f"{over_best_peer(found):.2f} of the best peer, {over_oracle(found):.2f} of the oracle"
    lines = [
        f"{name}, start-up {startup_s:.0f} s: {ratios}, {reversals_a_day(found, startup_s):.0f} reversals",
        f"Computing alone takes {found[0].min_gpu_hours:.1f} GPU-hours; ours {least:.2f} times that, median over seeds.",
    ]
    for row in rows(found[0], startup_s):
        what = (
            f"{row.gpu_hours:7.1f} GPU-h at {row.attainment_fraction:.4f}, {COMPARED_POLICIES[row.policy].knob} {row.knob:.3g}, "
            f"{row.reversals} reversals"
            if row.gpu_hours is not None
            else f"never; {max(point[2] for point in row.curve):.4f} at best"
        )
        lines.append(f"  {row.policy:24} {what}")
    return lines


def shared_data_at_hand() -> bool:
    """Whether recorded traffic can be read."""
    return (SHARED / "traces").is_dir()
