"""Runs a load on a system with a progress bar; the first Ctrl-C ends the run, and what has ended until then counts."""

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
    """A run. unfinished: requests that Ctrl-C cut off. client_cpu_s: of the load generator's process."""

    records: list[Record]
    unfinished: int
    interrupted: bool
    client_cpu_s: float


def measure(target: TargetSpec, load: Load, total: int | None, warm_up: int) -> Measured:
    """Sends a few short requests whose results are dropped, then the load. total: its requests, if known. Raises StartError."""
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
    """The first Ctrl-C acts and is noted in the list, instead of raising; a second one raises."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        signal.signal(number, former)
        noted.append(number)
        print("\nEnding the run; Ctrl-C again gives it up.", file=sys.stderr)
        act()

    former = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, former)


@contextlib.contextmanager
def _progress(console: Console, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; the function takes how many requests have ended."""
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("requests", total=total)
        yield lambda ended: bars.update(task, completed=ended)
