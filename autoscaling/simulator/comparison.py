"""Policies compared over the curve of what attainment costs: each at several settings of its knob, and ever closer around the cheapest that
keeps the promise. Where a knob is known that suits similar traffic, the search begins around that. One process for each core; all of it
deterministic by seed."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for_processes
from threading import Thread

from autoscaling.simulator.cluster import simulate
from autoscaling.simulator.compared_policies import CONTENDERS
from autoscaling.simulator.config import Setting
from autoscaling.simulator.result import Outcome
from autoscaling.simulator.workloads import Workload


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation."""

    contender: str
    knob: float
    workload: Workload
    setting: Setting


@dataclass(frozen=True, slots=True)
class Point:
    """What one setting of a policy's knob came to."""

    contender: str
    knob: float
    attainment_fraction: float
    outcome: Outcome

    @property
    def gpu_hours(self) -> float:
        """Of all replicas, after the warm-up."""
        return self.outcome.gpu_hours


def run(job: Job, progress: Callable[[float], None] = lambda _seconds: None) -> Point:
    """Simulates it."""
    setting = job.setting
    policy = CONTENDERS[job.contender].make(job.knob, job.workload, setting.spec, setting.startup_s, setting.seed)
    outcome = simulate(job.workload.requests(setting.seed), policy, setting, job.workload.duration_s, progress)
    return Point(job.contender, job.knob, outcome.attainment_fraction(setting.spec.targets), outcome)


def cheapest(points: Iterable[Point], attainment_fraction: float) -> Point | None:
    """Of those that keep the promise, the one with the fewest GPU-hours."""
    return min(
        (point for point in points if point.attainment_fraction >= attainment_fraction), key=lambda point: point.gpu_hours, default=None
    )


_NEAR = 3 / 64
"""Of a knob's span, by its logarithm: how far around a known knob the search begins."""
_MAX_WIDENED = 4


@dataclass(slots=True)
class Curve:
    """The points of one policy, in the order of their knobs, dear ones first. around: a knob that the search begins at, None for a grid."""

    contender: str
    points: list[Point]
    around: float | None = None
    spans: int = 0
    widened: int = 0

    def next_knobs(self, coarse: int, fine: int, attainment_fraction: float) -> list[float]:
        """Where to look next: a grid at first, and beyond its cheap end where that still keeps the promise; then between the cheapest point
        that does and its cheaper neighbour. Around a known knob first three, and further out where these do not enclose the promise."""
        which = CONTENDERS[self.contender]
        if not self.points:
            if self.around is not None:
                return [self._beside(self.around, steps) for steps in (-1, 0, 1)]
            return [which.dear * (which.cheap / which.dear) ** (place / (coarse - 1)) for place in range(coarse)]
        best = cheapest(self.points, attainment_fraction)
        place = self.points.index(best) if best else -1
        if best is None or place == len(self.points) - 1:
            return self._further_out(best)
        if self.spans >= fine:
            return []
        self.spans += 1
        return [math.sqrt(best.knob * self.points[place + 1].knob)]

    def _further_out(self, best: Point | None) -> list[float]:
        """Twice as far each time: beyond the cheapest knob where that keeps the promise; around a known one, beyond the dearest where none
        does."""
        if self.widened >= _MAX_WIDENED or (best is None and self.around is None):
            return []
        self.widened += 1
        return [self._beside(best.knob if best else self.points[0].knob, (1 if best else -1) * 2**self.widened)]

    def _beside(self, knob: float, steps: int) -> float:
        """Towards cheap, or towards dear where steps are negative."""
        which = CONTENDERS[self.contender]
        return knob * math.exp(math.log(which.cheap / which.dear) * steps * _NEAR)

    def add(self, points: Iterable[Point]) -> None:
        """In their places."""
        towards_cheap = 1 if CONTENDERS[self.contender].cheap > CONTENDERS[self.contender].dear else -1
        self.points = sorted([*self.points, *points], key=lambda point: towards_cheap * point.knob)


def compare(
    contenders: Sequence[str],
    workload: Workload,
    setting: Setting,
    executor: Executor,
    coarse: int = 5,
    fine: int = 4,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
    around: Mapping[str, float] | None = None,
) -> dict[str, Curve]:
    """The curves of all contenders. coarse: points of the first grid; fine: looks between two. progress: told runs done and to do.

    around: of contenders, the knobs that suited similar traffic.
    """
    promise = setting.spec.targets.attainment_fraction
    curves = {name: Curve(name, [], (around or {}).get(name)) for name in contenders}
    open_jobs: dict[Future[Point], str] = {}
    most, done = len(contenders) * (coarse + fine), 0
    awaited = dict.fromkeys(contenders, 0)

    def ask(name: str) -> int:
        knobs = curves[name].next_knobs(coarse, fine, promise)
        for knob in knobs:
            open_jobs[executor.submit(run, Job(name, knob, workload, setting))] = name
        awaited[name] = len(knobs)
        return len(knobs)

    for name in contenders:
        ask(name)
    while open_jobs:
        for future in wait(open_jobs, return_when="FIRST_COMPLETED").done:
            name = open_jobs.pop(future)
            curves[name].add([future.result()])
            awaited[name] -= 1
            done += 1
            if not awaited[name] and not ask(name):
                most -= coarse + fine - len(curves[name].points)
            progress(done, max(most, done + len(open_jobs)))
    return curves


def processes(count: int) -> ProcessPoolExecutor:
    """Processes that simulations run in, and that end with this one, however it ends.

    Spawned: a fork server is one to a process, and engines have theirs import what they need.
    """
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker that is killed with its parent's death could otherwise simulate on for hours, for nobody."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_exit_after, args=(parent.sentinel,), name="end-with-parent", daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait_for_processes([sentinel])
    os._exit(1)
