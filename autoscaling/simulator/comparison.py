"""Comparison of policies by the cost of attainment.

Each policy is simulated at several values of its knob, which are refined around the cheapest value that meets the attainment target. If a
suitable knob is known from similar traffic, the search starts around it. Simulations run in one process per core and are deterministic by
seed.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for_processes
from threading import Thread

from autoscaling.simulator.cluster import simulate
from autoscaling.simulator.compared_policies import COMPARED_POLICIES
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.result import SimulationResult
from autoscaling.simulator.workloads import Workload

_FIRST_STEP = 3 / 64
"""Distance from a known knob at which the search starts, as a fraction of the knob's range on a logarithmic scale."""
_MAX_WIDENINGS = 4
"""Maximum number of times that a search leaves its initial range."""


@dataclass(frozen=True, slots=True)
class ComparisonTask:
    """One simulation of a comparison."""

    policy: str
    """Name of the policy in COMPARED_POLICIES."""
    knob: float
    """Value of the policy's knob."""
    workload: Workload
    """The traffic."""
    config: SimulationConfig
    """The simulated pool."""


@dataclass(frozen=True, slots=True)
class Point:
    """The result of one policy with one knob value."""

    policy: str
    """Name of the policy in COMPARED_POLICIES."""
    knob: float
    """Value of the policy's knob."""
    attainment_fraction: float
    """Fraction of requests within both latency targets."""
    result: SimulationResult
    """The complete result."""

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all replicas after the warm-up."""
        return self.result.gpu_hours


def run(task: ComparisonTask, progress: Callable[[float], None] = lambda _seconds: None) -> Point:
    """Runs one simulation. `progress` is called with the simulated time in seconds."""
    config = task.config
    policy = COMPARED_POLICIES[task.policy].make(task.knob, task.workload, config.spec, config.startup_s, config.seed)
    result = simulate(task.workload.requests(config.seed), policy, config, task.workload.duration_s, progress)
    return Point(task.policy, task.knob, result.attainment_fraction(config.spec.targets), result)


def cheapest(points: Iterable[Point], attainment_fraction: float) -> Point | None:
    """Returns the point with the fewest GPU-hours among those that reach the attainment, or None if none does."""
    return min(
        (point for point in points if point.attainment_fraction >= attainment_fraction), key=lambda point: point.gpu_hours, default=None
    )


@dataclass(slots=True)
class Curve:
    """The points of one policy, and the state of the search for its cheapest sufficient knob."""

    policy: str
    """Name of the policy in COMPARED_POLICIES."""
    points: list[Point]
    """Points in the order of their knobs, the most expensive first."""
    around: float | None = None
    """Knob at which the search starts; None starts with a grid over the whole range."""
    refinements: int = 0
    """Number of bisections so far."""
    widenings: int = 0
    """Number of times the search has left its initial range."""

    def next_knobs(self, coarse: int, fine: int, attainment_fraction: float) -> list[float]:
        """Returns the knob values to simulate next; an empty list ends the search.

        The search starts with a grid of `coarse` values, or with three values around a known knob. If the cheapest point still reaches the
        attainment, or if no point around a known knob does, the search goes beyond the range. Otherwise it bisects the interval between the
        cheapest sufficient point and its cheaper neighbour up to `fine` times.
        """
        compared = COMPARED_POLICIES[self.policy]
        if not self.points:
            if self.around is not None:
                return [self._shifted(self.around, steps) for steps in (-1, 0, 1)]
            ratio = compared.cheapest_knob / compared.most_expensive_knob
            return [compared.most_expensive_knob * ratio ** (place / (coarse - 1)) for place in range(coarse)]
        best = cheapest(self.points, attainment_fraction)
        place = self.points.index(best) if best else -1
        if best is None or place == len(self.points) - 1:
            return self._widened(best)
        if self.refinements >= fine:
            return []
        self.refinements += 1
        return [math.sqrt(best.knob * self.points[place + 1].knob)]

    def _widened(self, best: Point | None) -> list[float]:
        """Returns a knob beyond the range, twice as far each time: beyond the cheapest if it suffices, else beyond the most expensive."""
        if self.widenings >= _MAX_WIDENINGS or (best is None and self.around is None):
            return []
        self.widenings += 1
        return [self._shifted(best.knob if best else self.points[0].knob, (1 if best else -1) * 2**self.widenings)]

    def _shifted(self, knob: float, steps: int) -> float:
        """Returns the knob moved towards cheaper values, or towards more expensive ones if `steps` is negative."""
        compared = COMPARED_POLICIES[self.policy]
        return knob * math.exp(math.log(compared.cheapest_knob / compared.most_expensive_knob) * steps * _FIRST_STEP)

    def add(self, points: Iterable[Point]) -> None:
        """Inserts points in order."""
        compared = COMPARED_POLICIES[self.policy]
        towards_cheap = 1 if compared.cheapest_knob > compared.most_expensive_knob else -1
        self.points = sorted([*self.points, *points], key=lambda point: towards_cheap * point.knob)


def compare(
    policies: Sequence[str],
    workload: Workload,
    config: SimulationConfig,
    executor: Executor,
    coarse: int = 5,
    fine: int = 4,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    around: Mapping[str, float] | None = None,
) -> dict[str, Curve]:
    """Returns the curves of all policies.

    `coarse` is the number of points of the first grid and `fine` the maximum number of bisections. `progress` is called with the number of
    finished simulations and the expected total. `around` holds knobs that suited similar traffic, by policy.
    """
    target_fraction = config.spec.targets.attainment_fraction
    curves = {name: Curve(name, [], (around or {}).get(name)) for name in policies}
    running: dict[Future[Point], str] = {}
    expected_total, done = len(policies) * (coarse + fine), 0
    pending = dict.fromkeys(policies, 0)

    def submit_next(name: str) -> int:
        knobs = curves[name].next_knobs(coarse, fine, target_fraction)
        for knob in knobs:
            running[executor.submit(run, ComparisonTask(name, knob, workload, config))] = name
        pending[name] = len(knobs)
        return len(knobs)

    for name in policies:
        submit_next(name)
    while running:
        for future in wait(running, return_when="FIRST_COMPLETED").done:
            name = running.pop(future)
            curves[name].add([future.result()])
            pending[name] -= 1
            done += 1
            if not pending[name] and not submit_next(name):
                expected_total -= coarse + fine - len(curves[name].points)
            progress(done, max(expected_total, done + len(running)))
    return curves


def process_pool(count: int) -> ProcessPoolExecutor:
    """Returns an executor whose worker processes end with this process, however it ends.

    Workers are spawned, because a process has only one fork server and the engines preload theirs with modules of their own.
    """
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_exit_with_parent)


def _exit_with_parent() -> None:
    """Watches the parent process: if it is killed, a worker would otherwise continue for hours."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_exit_after, args=(parent.sentinel,), name="exit-with-parent", daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait_for_processes([sentinel])
    os._exit(1)
