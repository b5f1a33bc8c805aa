"""Comparison of several systems on the same workloads. One system runs at a time, in alternating order."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from neox_serve.loadgen.generator import LoadGenerator, load_generator
from neox_serve.loadgen.processes import CpuMeter, family, resident_mib
from neox_serve.loadgen.records import Record
from neox_serve.loadgen.summaries import Summary, summarize
from tests.bench.engines.systems import Running, System
from tests.bench.metering import run_metered
from tests.bench.order import alternating
from tests.bench.processes import importing_tests
from tests.bench.spreads import Spread, differences, identical_fraction, ratios
from tests.bench.view import View
from tests.bench.workloads import Workload

_SILENCE_S = 120.0


class NotComparableError(RuntimeError):
    """The systems did not do the same work, so a ratio would be meaningless."""


@dataclass(frozen=True, slots=True)
class Run:
    """One workload on one system in one round."""

    system: str
    """Name of the system."""
    workload: Workload
    """The workload."""
    summary: Summary
    """Summary of the requests."""
    records: list[Record]
    """Records of all requests."""
    resident_mib: float
    """Memory of all processes at the end, with shared pages counted once."""

    def figure(self, name: str) -> float:
        """Returns a value of the summary, or `resident_mib`. Raises KeyError if the name is unknown."""
        value = self.figures()[name]
        assert isinstance(value, (int, float))
        return float(value)

    def figures(self) -> dict[str, object]:
        """Returns all values by name."""
        return {**self.summary.figures(), "resident_mib": self.resident_mib}


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a system."""

    system: str
    """Name of the system."""
    rounds: tuple[int, ...]
    """Rounds that were measured before it was stopped."""
    first_token_s: float
    """Time from its first process until the first token of a single request reached the client, in seconds.

    The start of the load generator counts only if the system runs within it."""


@dataclass(frozen=True, slots=True)
class Later:
    """Workloads that depend on the results of the first round. Raises ValueError if `rounds` includes round 0 or 1."""

    make: "Callable[[Comparison], Sequence[Workload]]"
    """Returns the workloads, given the results of the first round."""
    rounds: frozenset[int]
    """Rounds in which the workloads run. The first two are excluded, because the last system runs them without a stop in between."""

    def __post_init__(self) -> None:
        if min(self.rounds, default=2) < 2:
            raise ValueError(f"rounds {sorted(self.rounds)} are invalid; they must not include 0 and 1")

    def of_round(self, number: int, runs: Sequence[Run]) -> Sequence[Workload]:
        """Returns the workloads of a round, given all previous runs."""
        return self.make(Comparison([run for run in runs if run.workload.round == 0])) if number in self.rounds else ()


class Comparison:
    """All runs of a comparison. Methods raise KeyError for unknown systems and workloads."""

    def __init__(self, runs: Sequence[Run], starts: Sequence[Start] = ()) -> None:
        self.runs = tuple(runs)
        self.starts = tuple(starts)

    def of(self, system: str, workload: str) -> list[Run]:
        """Returns a system's runs of a workload in the order of rounds."""
        found = [run for run in self.runs if (run.system, run.workload.name) == (system, workload)]
        if not found:
            raise KeyError(f"workload {workload} was not run on {system}")
        return sorted(found, key=lambda run: run.workload.round)

    def median(self, system: str, workload: str, figure: str) -> float:
        """Returns a value of the summary as the median over the rounds."""
        return median(self._figures(system, workload, figure))

    def ratio(self, system: str, over: str, workload: str, figure: str) -> Spread:
        """Returns a value of one system relative to another within each round. Raises NotComparableError if requests failed."""
        self._require_complete(system, over, workload)
        return ratios(self._figures(system, workload, figure), self._figures(over, workload, figure))

    def difference(self, system: str, minus: str, workload: str, figure: str) -> Spread:
        """Returns a value of one system minus that of another within each round. Raises NotComparableError if requests failed."""
        self._require_complete(system, minus, workload)
        return differences(self._figures(system, workload, figure), self._figures(minus, workload, figure))

    def first_token_s(self, system: str) -> list[float]:
        """Returns the time to the first token of each start of a system, in seconds. Raises KeyError if it was not started."""
        found = [start.first_token_s for start in self.starts if start.system == system]
        if not found:
            raise KeyError(f"{system} was not started")
        return found

    def start_ratio(self, system: str, over: str) -> Spread:
        """Returns the time from start to first token of one system relative to another, for the starts of each round.

        Raises KeyError if one was not started, and ValueError if their rounds differ.
        """
        return ratios(self._first_token_s_by_round(system), self._first_token_s_by_round(over))

    def identical(self, system: str, other: str, workload: str) -> float:
        """Returns the fraction of responses with the same tokens over all rounds."""
        ours = [record for run in self.of(system, workload) for record in run.records]
        return identical_fraction(ours, [record for run in self.of(other, workload) for record in run.records])

    def _first_token_s_by_round(self, system: str) -> list[float]:
        self.first_token_s(system)
        by_round = {number: start.first_token_s for start in self.starts if start.system == system for number in start.rounds}
        return [by_round[number] for number in sorted(by_round)]

    def _figures(self, system: str, workload: str, figure: str) -> list[float]:
        return [run.figure(figure) for run in self.of(system, workload)]

    def _require_complete(self, system: str, other: str, workload: str) -> None:
        for run in (*self.of(system, workload), *self.of(other, workload)):
            wrong = [record for record in run.records if record.error is None and len(record.token_ids) != workload_tokens(run)]
            if run.summary.failed or wrong:
                first = next(iter(run.summary.errors), None) or f"{len(wrong)} responses have the wrong length"
                raise NotComparableError(f"{run.system}, {workload}, round {run.workload.round}: {run.summary.failed} failed: {first}")


def workload_tokens(run: Run) -> int:
    """Returns the number of tokens that each response of a run must have."""
    return run.workload.output_tokens


def compare(
    systems: Sequence[System], workloads: Sequence[Workload], *, rounds: int, folder: Path, view: View, later: Later | None = None
) -> Comparison:
    """Runs every workload on every system in every round. Raises StartError if a system does not start."""
    by_name = {system.name: system for system in systems}
    visits = alternating(list(by_name), rounds)
    runs: list[Run] = []
    starts: list[Start] = []
    for number, visit in enumerate(visits):
        visit_folder = folder / f"{number:02d}-{visit.system.replace(' ', '-')}"
        visit_folder.mkdir(parents=True)
        wanted = [load.in_round(each) for each in visit.rounds for load in [*workloads, *(later.of_round(each, runs) if later else ())]]
        began_s = time.monotonic()
        with view.step(f"{visit.system}: starting ({number + 1} of {len(visits)})"), by_name[visit.system].running(visit_folder) as running:
            up_s = None if running.processes is None else time.monotonic()
            first, measured = _visit(running, visit.system, wanted, visit_folder, view)
        starts.append(Start(visit.system, visit.rounds, start_to_first_token_s(began_s, up_s, first)))
        runs += measured
    return Comparison(runs, starts)


def start_to_first_token_s(began_s: float, up_s: float | None, first: Record) -> float:
    """Returns the seconds from a system's start to its first token, without the start of the load generator.

    `up_s` is the time at which the system was ready, or None if it runs within the load generator, whose start then counts. `first` is a
    record with a token.
    """
    assert first.first_token_s is not None
    return first.first_token_s - began_s - (0.0 if up_s is None else first.intended_s - up_s)


def _visit(running: Running, system: str, workloads: Sequence[Workload], folder: Path, view: View) -> tuple[Record, list[Run]]:
    """Measures the first token of a started system, warms it up, and runs the workloads."""
    with load_generator(running.target, folder, {**running.client_environment, **importing_tests()}) as generator:
        lone = replace(workloads[0], name="first token", streams=1, requests=1, output_tokens=1, rate_rps=None)
        (first,) = generator.run(lone.load(), max_silence_s=_SILENCE_S).records
        if first.first_token_s is None:
            raise NotComparableError(f"{system} returned no first token: {first.error}")
        for name in sorted({workload.name for workload in workloads}):
            generator.run(next(workload for workload in workloads if workload.name == name).warm_up(), max_silence_s=_SILENCE_S)
        return first, [_measure(generator, running, system, workload, view) for workload in workloads]


def _measure(generator: LoadGenerator, running: Running, system: str, workload: Workload, view: View) -> Run:
    """Measures one run with its CPU time. If the system runs within the load generator, all CPU time counts as the system's."""
    inside = running.processes is None
    whole = CpuMeter(running.processes or (lambda: family(generator.process)))
    client = CpuMeter(list if inside else lambda: [generator.process])
    with view.progress(f"{system}: {workload.name}, round {workload.round + 1}", workload.requests) as on_progress:
        records, cpu_s = run_metered(generator, workload.load(), {"system": whole, "client": client}, on_progress)
    summary = summarize(
        records,
        max_concurrency=None if workload.rate_rps else workload.streams,
        open_loop=workload.rate_rps is not None,
        system_cpu_s=cpu_s["system"],
        client_cpu_s=cpu_s["client"],
    )
    return Run(system, workload, summary, records, resident_mib((running.processes or (lambda: family(generator.process)))()))
