"""`neox-serve simulate`: compares scaling policies on simulated GPT-NeoX-20B replicas. It needs no GPU."""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neox_serve.cli.console import print_view
from neox_serve.cli.errors import CommandError

if TYPE_CHECKING:
    from autoscaling.simulator.comparison import Curve
    from autoscaling.simulator.config import SimulationConfig
    from autoscaling.simulator.workloads import Workload

_TRAFFIC, _POOL, _TARGETS, _POLICIES, _RESULTS = "Traffic", "Pool", "Targets", "Policies", "Results"


class PolicyName(StrEnum):
    """Values of --policy: the names in autoscaling.simulator.compared_policies, which is too slow to import for help and completion."""

    TOKEN_AWARE = "token-aware"  # noqa: S105 - a policy
    TARGET_ONGOING_REQUESTS = "target-ongoing-requests"
    TARGET_TTFT = "target-ttft"
    KPA = "kpa"
    SATURATION = "saturation"
    FORECAST = "forecast"
    STATIC = "static"
    ORACLE = "oracle"


def _option(panel: str, text: str, *names: str, metavar: str | None = None, minimum: float | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, min=minimum)


def simulate(  # noqa: PLR0913 - the command's options, one by one
    *,
    workload: Annotated[
        Literal["diurnal", "step"],
        _option(_TRAFFIC, "Synthetic traffic: a daily wave with bursts, or a step."),
    ] = "diurnal",
    trace: Annotated[
        Path | None,
        _option(_TRAFFIC, "Replay recorded traffic instead: a CSV file in the format of Azure's traces.", metavar="FILE"),
    ] = None,
    scale: Annotated[float, _option(_TRAFFIC, "Multiplies the number of requests of --trace.")] = 1.0,
    tenants: Annotated[
        Path | None,
        _option(_TRAFFIC, "Simulate many tenants instead: a folder with ServeGen's tables.", metavar="FOLDER"),
    ] = None,
    begin_s: Annotated[
        float, _option(_TRAFFIC, "Where to begin in the recording of --tenants.", "--begin", metavar="SECONDS", minimum=0)
    ] = 0.0,
    rate: Annotated[float, _option(_TRAFFIC, "Mean requests per second; with a step, the rate before it.")] = 12.0,
    duration_s: Annotated[
        float,
        _option(_TRAFFIC, "Simulated time. One wave of diurnal traffic takes all of it.", "--duration", metavar="SECONDS"),
    ] = 3600.0,
    step_factor: Annotated[float, _option(_TRAFFIC, "The rate after a step is this many times the rate before.")] = 5.0,
    seed: Annotated[int, _option(_TRAFFIC, "Random seed. The same seed gives the same result.")] = 0,
    gpu: Annotated[Literal["a100-80", "h100-80"], _option(_POOL, "GPU type of the replicas.")] = "a100-80",
    tensor_parallel_size: Annotated[int, _option(_POOL, "GPUs per replica: 1, 2, 4 or 8.", "--tensor-parallel-size", "--tp")] = 2,
    calibration: Annotated[
        Path | None,
        _option(_POOL, "Fit step times to the tables in this folder and print the error. Default: built-in fit.", metavar="FOLDER"),
    ] = None,
    min_replicas: Annotated[int, _option(_POOL, "Minimum number of replicas.", "--min", minimum=0)] = 1,
    max_replicas: Annotated[int, _option(_POOL, "Maximum number of replicas.", "--max", minimum=1)] = 64,
    initial_replicas: Annotated[
        int | None, _option(_POOL, "Ready replicas at the start. Default: --min, but at least 1.", "--initial", minimum=0)
    ] = None,
    startup_s: Annotated[float, _option(_POOL, "Time that a replica takes to start.", "--startup", metavar="SECONDS", minimum=0.1)] = 90.0,
    failures: Annotated[float, _option(_POOL, "Failures per GPU and hour.", metavar="RATE", minimum=0)] = 0.0,
    ttft_s: Annotated[float, _option(_TARGETS, "Target time to first token (TTFT).", "--ttft", metavar="SECONDS")] = 2.0,
    tpot_s: Annotated[float, _option(_TARGETS, "Target time per output token (TPOT).", "--tpot", metavar="SECONDS")] = 0.1,
    attainment: Annotated[float, _option(_TARGETS, "Fraction of requests that must meet both targets, 0 to 1.", metavar="FRACTION")] = 0.99,
    policy: Annotated[list[PolicyName] | None, _option(_POLICIES, "Simulate only this policy; repeatable. Default: all policies.")] = None,
    knob: Annotated[
        float | None,
        _option(_POLICIES, "Run each policy once, at this value of its parameter. Default: several values."),
    ] = None,
    points: Annotated[int, _option(_POLICIES, "Number of values to try for the parameter of each policy.", minimum=2)] = 5,
    refinements: Annotated[
        int,
        _option(_POLICIES, "Number of further values around the cheapest one that meets the targets.", minimum=0),
    ] = 4,
    warmup_s: Annotated[
        float,
        _option(_RESULTS, "Exclude the first seconds from the results.", "--warm-up", metavar="SECONDS", minimum=0),
    ] = 600.0,
    processes: Annotated[int | None, _option(_RESULTS, "Number of parallel simulations. Default: one per CPU core.", minimum=1)] = None,
    json_file: Annotated[Path | None, _option(_RESULTS, "Write all figures to this file.", "--json", metavar="FILE")] = None,
    report: Annotated[
        Path | None,
        _option(_RESULTS, "Write report.html and its charts to this folder; needs matplotlib.", metavar="FOLDER"),
    ] = None,
) -> None:
    """Simulate scaling policies and compare their attainment and cost with those of an oracle."""
    from cluster.planning.simulation_plan import OptionError, PoolOptions, TrafficOptions, simulation_config, traffic

    _check_results(json_file, report)
    names = [name.value for name in dict.fromkeys(policy or PolicyName)]
    try:
        given = traffic(TrafficOptions(workload, trace, scale, tenants, begin_s, rate, duration_s, step_factor))
        pool = PoolOptions(
            gpu,
            tensor_parallel_size,
            calibration,
            min_replicas,
            max_replicas,
            initial_replicas,
            startup_s,
            failures,
            ttft_s,
            tpot_s,
            attainment,
        )
        chosen = simulation_config(pool, warmup_s, given.duration_s, seed)
    except OptionError as error:
        raise typer.BadParameter(str(error), param_hint=error.option) from error
    notes = _notes(given, chosen, calibration, gpu, tensor_parallel_size)
    for note in notes:
        typer.echo(note, err=True)
    curves = _single(names, knob, given, chosen) if knob is not None else _curves(names, given, chosen, processes, points, refinements)
    _show_results(curves, chosen, notes, json_file, report)


def _check_results(json_file: Path | None, report: Path | None) -> None:
    """Checks the output paths before anything runs, so that no result is lost."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise typer.BadParameter(f"{json_file.parent} is not a folder", param_hint="--json")
    if report is not None and report.exists() and not report.is_dir():
        raise typer.BadParameter(f"{report} is not a folder", param_hint="--report")
    if report is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--report needs matplotlib: `pip install matplotlib`, or install neox-serve[plot]")


def _notes(given: "Workload", chosen: "SimulationConfig", calibration: Path | None, gpu: str, size: int) -> list[str]:
    """Sentences that describe the simulation, the lower bound of its cost and, with --calibration, the error of the fit."""
    from autoscaling.simulator.lower_bound import min_gpu_hours

    what = f"{given.name}: {given.duration_s:.0f} s, the first {chosen.warmup_s:.0f} of which are excluded."
    bounds = f"{chosen.spec.min_replicas} to {chosen.spec.max_replicas}"
    notes = [f"{what} Replicas of GPT-NeoX-20B on {gpu} x {size}, start-up {chosen.startup_s:.0f} s, {bounds}; seed {chosen.seed}."]
    gpu_hours = min_gpu_hours(given.requests(chosen.seed), chosen.spec, chosen.warmup_s, given.duration_s)
    notes.append(f"Lower bound of any policy: {gpu_hours:.2f} GPU-hours of computation.")
    if gpu == "h100-80":
        notes.append("H100: step times of the A100, scaled by the speedup that Vidur measured for the operators of a 20B model.")
    if calibration is not None:
        from autoscaling.simulator.calibration import LATENCIES, fit, read_latencies
        from cluster.views.simulation import fit_lines

        notes += fit_lines({size: fit(read_latencies(calibration / LATENCIES, size))})
    return notes


def _curves(
    names: list[str], given: "Workload", chosen: "SimulationConfig", processes: int | None, points: int, refinements: int
) -> "dict[str, Curve]":
    from autoscaling.simulator import comparison

    with comparison.process_pool(processes or os.cpu_count() or 1) as executor, _progress("simulations") as bar:
        return comparison.compare(names, given, chosen, executor, points, refinements, bar)


def _single(names: list[str], knob: float, given: "Workload", chosen: "SimulationConfig") -> "dict[str, Curve]":
    from autoscaling.simulator.comparison import ComparisonTask, Curve, run

    found = {}
    for name in names:
        with _progress(name) as bar:
            point = run(ComparisonTask(name, knob, given, chosen), lambda seconds: bar(int(seconds), int(given.duration_s)))
        found[name] = Curve(name, [point])
    return found


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A progress bar on a terminal. Yields a function that takes the number done and the total."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _show_results(
    curves: "dict[str, Curve]", chosen: "SimulationConfig", notes: list[str], json_file: Path | None, report: Path | None
) -> None:
    from cluster.views.simulation import figures, table, write_report

    targets = chosen.spec.targets
    print_view(table(curves, targets))
    if json_file is not None:
        json_file.write_text(json.dumps(figures(curves, targets), indent=1), encoding="utf-8")
    if report is not None:
        typer.echo(f"Report: {write_report(report, 'Simulated scaling policies', notes, curves, targets)}", err=True)
