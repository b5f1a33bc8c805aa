"""What became of simulated traffic: latencies of every request, replicas over time, and what they cost."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoscaling.signals import PoolSignals, Targets


@dataclass(frozen=True, slots=True)
class Action:
    """A change of how many replicas there should be."""

    at_s: float
    before: int
    after: int
    reason: str


@dataclass(slots=True)
class Timeline:
    """Once an interval: moments, replicas by state, requests that wait and run, and requests that came, a second."""

    at_s: "array[float]" = field(default_factory=lambda: array("d"))
    ready: "array[int]" = field(default_factory=lambda: array("l"))
    starting: "array[int]" = field(default_factory=lambda: array("l"))
    draining: "array[int]" = field(default_factory=lambda: array("l"))
    waiting: "array[int]" = field(default_factory=lambda: array("l"))
    running: "array[int]" = field(default_factory=lambda: array("l"))
    arrived_per_s: "array[float]" = field(default_factory=lambda: array("d"))

    def note(self, at_s: float, signals: PoolSignals) -> None:
        """One moment, as a policy will see it."""
        demands = signals.by_class.values()
        self.at_s.append(at_s)
        self.ready.append(signals.ready_replicas)
        self.starting.append(signals.starting_replicas)
        self.draining.append(signals.draining_replicas)
        self.waiting.append(int(sum(demand.waiting_requests for demand in demands)))
        self.running.append(int(signals.running_requests))
        self.arrived_per_s.append(sum(demand.arrived_requests_per_s for demand in demands))


@dataclass(slots=True)
class Outcome:
    """One run. ttft_s, tpot_s: of requests, by at_s; infinite where one was refused. BULK requests are counted apart.

    tpot_s is 0 for requests of one token. gpu_s: GPU-seconds, starting and draining included. startup_s: of the run's replicas, nominally.
    """

    duration_s: float
    startup_s: float
    gpu_s: float = 0.0
    at_s: "array[float]" = field(default_factory=lambda: array("d"))
    ttft_s: "array[float]" = field(default_factory=lambda: array("d"))
    tpot_s: "array[float]" = field(default_factory=lambda: array("d"))
    tenants: "array[int]" = field(default_factory=lambda: array("l"))
    refused: int = 0
    bulk_ended: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    actions: list[Action] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)

    def sort(self) -> None:
        """Puts requests, which are noted as they end, in the order in which they came."""
        order = np.argsort(np.frombuffer(self.at_s, dtype=float), kind="stable")
        for name in ("at_s", "ttft_s", "tpot_s"):
            setattr(self, name, array("d", np.frombuffer(getattr(self, name), dtype=float)[order].tobytes()))
        self.tenants = array("l", np.frombuffer(self.tenants, dtype=np.int64)[order].tobytes())

    @property
    def requests(self) -> int:
        """Answered or refused, BULK not counted."""
        return len(self.at_s)

    @property
    def gpu_hours(self) -> float:
        """Of all replicas."""
        return self.gpu_s / 3600

    def met(self, targets: Targets) -> NDArray[np.bool_]:
        """For each request, whether it was within both targets."""
        ttft, tpot = np.frombuffer(self.ttft_s, dtype=float), np.frombuffer(self.tpot_s, dtype=float)
        return (ttft <= targets.ttft_s) & (tpot <= targets.tpot_s)

    def attainment_fraction(self, targets: Targets) -> float:
        """Of requests that were within both targets; 1 where there were none."""
        return float(np.mean(self.met(targets))) if self.requests else 1.0

    def quantile_s(self, values: Sequence[float], fraction: float) -> float:
        """Of ttft_s or tpot_s, refused ones left out; NaN where nothing is left."""
        found = np.asarray(values, dtype=float)
        found = found[np.isfinite(found)]
        return float(np.quantile(found, fraction)) if len(found) else math.nan

    def reversals(self, within_s: float) -> int:
        """Actions that undo the direction of the one before within so many seconds."""
        found = 0
        for before, after in zip(self.actions, self.actions[1:], strict=False):
            opposite = (before.after - before.before) * (after.after - after.before) < 0
            found += opposite and after.at_s - before.at_s <= within_s
        return found

    def recovery_s(self, step_s: float, targets: Targets, span_s: float = 60.0) -> float:
        """From a moment until attainment is back: the first second from which on it is as promised over the next span_s. Infinite where it
        never was."""
        at, met = np.frombuffer(self.at_s, dtype=float), self.met(targets)
        for begin_s in np.arange(step_s, self.duration_s - span_s):
            first, last = np.searchsorted(at, (begin_s, begin_s + span_s))
            if last > first and np.mean(met[first:last]) >= targets.attainment_fraction:
                return float(begin_s - step_s)
        return math.inf
