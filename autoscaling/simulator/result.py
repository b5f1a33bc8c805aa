"""The result of a simulation: the latencies of every request, the replicas over time, and their cost."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoscaling.signals import PoolSignals, Targets


@dataclass(frozen=True, slots=True)
class Action:
    """A change of the wanted replica count."""

    at_s: float
    """When the policy decided it, in simulated seconds."""
    before: int
    """The wanted count before."""
    after: int
    """The wanted count after."""
    reason: str
    """The policy's reason."""


@dataclass(slots=True)
class Timeline:
    """The state of the pool once per interval. All arrays have the same length."""

    at_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Times, in simulated seconds."""
    ready: "array[int]" = field(default_factory=lambda: array("l"))
    """Numbers of ready replicas."""
    starting: "array[int]" = field(default_factory=lambda: array("l"))
    """Numbers of starting replicas."""
    draining: "array[int]" = field(default_factory=lambda: array("l"))
    """Numbers of draining replicas."""
    waiting: "array[int]" = field(default_factory=lambda: array("l"))
    """Numbers of waiting requests."""
    running: "array[int]" = field(default_factory=lambda: array("l"))
    """Numbers of running requests."""
    arrived_per_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Arrival rates, in requests per second."""

    def record(self, at_s: float, signals: PoolSignals) -> None:
        """Appends the state at one moment."""
        demands = signals.by_class.values()
        self.at_s.append(at_s)
        self.ready.append(signals.ready_replicas)
        self.starting.append(signals.starting_replicas)
        self.draining.append(signals.draining_replicas)
        self.waiting.append(int(sum(demand.waiting_requests for demand in demands)))
        self.running.append(int(signals.running_requests))
        self.arrived_per_s.append(sum(demand.arrived_requests_per_s for demand in demands))


@dataclass(slots=True)
class SimulationResult:
    """The result of one simulation. at_s, ttft_s, tpot_s and tenants describe the requests that are not BULK and have the same length."""

    duration_s: float
    """Simulated time, in seconds."""
    startup_s: float
    """Mean time to start a replica, in seconds."""
    gpu_s: float = 0.0
    """GPU-seconds of all replicas after the warm-up, including starting and draining ones."""
    at_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Arrival times, in simulated seconds."""
    ttft_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Times to first token, in seconds; infinite for refused requests."""
    tpot_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Times per output token, in seconds; 0 for answers of one token, infinite for refused requests."""
    tenants: "array[int]" = field(default_factory=lambda: array("l"))
    """Tenants, by number."""
    refused: int = 0
    """Number of refused requests."""
    bulk_completed: int = 0
    """Number of BULK requests that have ended."""
    preemptions: int = 0
    """Number of preemptions in the engines."""
    cached_tokens: int = 0
    """Prompt tokens that prefix caches held."""
    prompt_tokens: int = 0
    """Prompt tokens of all requests."""
    output_tokens: int = 0
    """Tokens generated."""
    actions: list[Action] = field(default_factory=list)
    """Changes of the wanted replica count after the warm-up."""
    timeline: Timeline = field(default_factory=Timeline)
    """The pool's state over time."""

    def sort(self) -> None:
        """Sorts the requests, which are recorded when they end, by arrival."""
        order = np.argsort(np.frombuffer(self.at_s, dtype=float), kind="stable")
        for name in ("at_s", "ttft_s", "tpot_s"):
            setattr(self, name, array("d", np.frombuffer(getattr(self, name), dtype=float)[order].tobytes()))
        self.tenants = array("l", np.frombuffer(self.tenants, dtype=np.int64)[order].tobytes())

    @property
    def requests(self) -> int:
        """Number of requests that were answered or refused, without BULK."""
        return len(self.at_s)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all replicas."""
        return self.gpu_s / 3600

    def met(self, targets: Targets) -> NDArray[np.bool_]:
        """Returns for each request whether it was within both targets."""
        ttft, tpot = np.frombuffer(self.ttft_s, dtype=float), np.frombuffer(self.tpot_s, dtype=float)
        return (ttft <= targets.ttft_s) & (tpot <= targets.tpot_s)

    def attainment_fraction(self, targets: Targets) -> float:
        """Returns the fraction of requests within both targets, or 1 if there were no requests."""
        return float(np.mean(self.met(targets))) if self.requests else 1.0

    def quantile_s(self, values: Sequence[float], fraction: float) -> float:
        """Returns a quantile of ttft_s or tpot_s without refused requests, or NaN if there are none."""
        found = np.asarray(values, dtype=float)
        found = found[np.isfinite(found)]
        return float(np.quantile(found, fraction)) if len(found) else math.nan

    def reversals(self, within_s: float) -> int:
        """Returns the number of actions that reverse the direction of the previous action within `within_s` seconds."""
        found = 0
        for before, after in zip(self.actions, self.actions[1:], strict=False):
            opposite = (before.after - before.before) * (after.after - after.before) < 0
            found += opposite and after.at_s - before.at_s <= within_s
        return found

    def recovery_s(self, step_s: float, targets: Targets, span_s: float = 60.0) -> float:
        """Returns how long after `step_s` the attainment recovers, in seconds.

        It has recovered at the first second after which the next `span_s` seconds meet the target. If it never does, the result is
        infinite.
        """
        at, met = np.frombuffer(self.at_s, dtype=float), self.met(targets)
        for begin_s in np.arange(step_s, self.duration_s - span_s):
            first, last = np.searchsorted(at, (begin_s, begin_s + span_s))
            if last > first and np.mean(met[first:last]) >= targets.attainment_fraction:
                return float(begin_s - step_s)
        return math.inf
