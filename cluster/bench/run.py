"""Runs a load with a progress bar. The first Ctrl-C ends the run; requests that have ended by then are counted."""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from neox_serve.loadgen.arrivals import ClosedLoop
from neox_serve.loadgen.generator import LoadGenerator, load_generator
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.processes import CpuMeter
from neox_serve.loadgen.records import Record
from neox_serve.loadgen.targets import TargetSpec
from neox_serve.loadgen.workloads import Synthetic

_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a run."""

    records: list[Record]
    unfinished: int
    """Requests that Ctrl-C cut off."""
    interrupted: bool
    client_cpu_s: float
    """CPU time of the load generator's process."""


def measure(target: TargetSpec, load: Load, total: int | None, warm_up: int) -> Measured:
    """Sends `warm_up` short requests whose results are dropped, then the load. Raises StartError.

    total: number of requests of the load, if known.
    """
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="neox-serve-bench-") as folder, load_generator(target, Path(folder)) as generator:
        if warm_up:
            prompts = Synthetic("warm-up", warm_up, _WARM_UP_TOKENS, _WARM_UP_TOKENS)
            generator.run(Load(prompts, ClosedLoop(warm_up)))
        with _progress(console, total) as on_progress:
            return _run(generator, load, on_progress)


def _run(generator: LoadGenerator, load: Load, on_progress: Callable[[int], None]) -> Measured:
    cpu, used_s = CpuMeter(lambda: [generator.process]), list[float]()
    cpu.start()
    with _first_interrupt(generator.interrupt) as interrupts:
        outcome = generator.run(load, on_progress, lambda: used_s.append(cpu.read()))
    return Measured(outcome.records, outcome.unfinished, bool(interrupts), used_s[0])


@contextlib.contextmanager
def _first_interrupt(act: Callable[[], None]) -> Iterator[list[int]]:
    """The first Ctrl-C calls `act` and is recorded in the list; a second one raises KeyboardInterrupt."""
    recorded: list[int] = []

    def record(number: int, _frame: object) -> None:
        signal.signal(number, previous)
        recorded.append(number)
        print("\nEnding the run. Press Ctrl-C again to abort.", file=sys.stderr)
        act()

    previous = signal.signal(signal.SIGINT, record)
    try:
        yield recorded
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress(console: Console, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar, shown only on a terminal. Yields a function that takes the number of requests that have ended."""
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("requests", total=total)
        yield lambda ended: bars.update(task, completed=ended)
