"""`neox-serve simulate`: scaling policies on simulated GPT-NeoX-20B replicas, without a GPU."""

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

_TRAFFIC, _POOL, _PROMISE, _POLICIES, _RESULTS = "Traffic", "Pool", "What is promised", "Policies", "Results"


class PolicyName(StrEnum):
    """What --policy takes: the names in autoscaling.simulator.compared_policies, which help and completion must not import."""

    TOKEN_AWARE = "token-aware"  # noqa: S105 - a policy
    TARGET_ONGOING_REQUESTS = "target-ongoing-requests"
    TARGET_TTFT = "target-ttft"
    KPA = "kpa"
    SATURATION = "saturation"
    FORECAST = "forecast"
    STATIC = "static"
    ORACLE = "oracle"


def _option(panel: str, text: str, *names: str, metavar: str | None = None, least: float | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, min=least)


def simulate(  # noqa: PLR0913 - the command's options, one by one
    *,
    workload: Annotated[Literal["diurnal", "step"], _option(_TRAFFIC, "Made-up traffic: a day's wave with bursts, or a jump.")] = "diurnal",
    trace: Annotated[Path | None, _option(_TRAFFIC, "Recorded traffic instead: a CSV in Azure's format.", metavar="FILE")] = None,
    scale: Annotated[float, _option(_TRAFFIC, "So many times the requests of --trace.")] = 1.0,
    tenants: Annotated[Path | None, _option(_TRAFFIC, "Many tenants instead: a folder of ServeGen's tables.", metavar="FOLDER")] = None,
    begin_s: Annotated[
        float, _option(_TRAFFIC, "Where in the recording of --tenants to begin.", "--begin", metavar="SECONDS", least=0)
    ] = 0.0,
    rate: Annotated[float, _option(_TRAFFIC, "Mean requests a second (step: before the jump).")] = 12.0,
    duration_s: Annotated[float, _option(_TRAFFIC, "How long; a diurnal day lasts so long.", "--duration", metavar="SECONDS")] = 3600.0,
    step_factor: Annotated[float, _option(_TRAFFIC, "How many times the rate after the jump.")] = 5.0,
    seed: Annotated[int, _option(_TRAFFIC, "Of all that is drawn. The same seed gives the same result.")] = 0,
    gpu: Annotated[Literal["a100-80", "h100-80"], _option(_POOL, "What replicas run on.")] = "a100-80",
    tensor_parallel_size: Annotated[int, _option(_POOL, "GPUs of a replica: 1, 2, 4 or 8.", "--tensor-parallel-size", "--tp")] = 2,
    calibration: Annotated[
        Path | None, _option(_POOL, "Fits step times to these tables, and shows the error; absent: as fitted.", metavar="FOLDER")
    ] = None,
    min_replicas: Annotated[int, _option(_POOL, "Fewest replicas.", "--min", least=0)] = 1,
    max_replicas: Annotated[int, _option(_POOL, "Most replicas.", "--max", least=1)] = 64,
    initial_replicas: Annotated[
        int | None, _option(_POOL, "Ready at the start (default: --min, at least 1).", "--initial", least=0)
    ] = None,
    startup_s: Annotated[float, _option(_POOL, "How long a replica takes to start.", "--startup", metavar="SECONDS", least=0.1)] = 90.0,
    failures: Annotated[float, _option(_POOL, "How often a GPU dies, times an hour.", metavar="RATE", least=0)] = 0.0,
    ttft_s: Annotated[float, _option(_PROMISE, "Time to first token.", "--ttft", metavar="SECONDS")] = 2.0,
    tpot_s: Annotated[float, _option(_PROMISE, "Time per further token.", "--tpot", metavar="SECONDS")] = 0.1,
    attainment: Annotated[float, _option(_PROMISE, "Share of requests within both.", metavar="FRACTION")] = 0.99,
    policy: Annotated[list[PolicyName] | None, _option(_POLICIES, "Only this one; may be repeated (default: all).")] = None,
    knob: Annotated[float | None, _option(_POLICIES, "One run at this setting of the policy's knob instead of a curve.")] = None,
    points: Annotated[int, _option(_POLICIES, "Settings of each policy's knob to begin with.", least=2)] = 5,
    refinements: Annotated[int, _option(_POLICIES, "Further settings, around the cheapest that keeps the promise.", least=0)] = 4,
    warmup_s: Annotated[float, _option(_RESULTS, "Does not count what happens so early.", "--warm-up", metavar="SECONDS", least=0)] = 600.0,
    processes: Annotated[int | None, _option(_RESULTS, "Simulations at a time (default: one a core).", least=1)] = None,
    json_file: Annotated[Path | None, _option(_RESULTS, "Writes all figures.", "--json", metavar="FILE")] = None,
    report: Annotated[Path | None, _option(_RESULTS, "Writes report.html and pictures; needs matplotlib.", metavar="FOLDER")] = None,
) -> None:
    """Simulate scaling policies: what attainment costs each, and what an oracle would have used."""
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
    _tell(curves, chosen, notes, json_file, report)


def _check_results(json_file: Path | None, report: Path | None) -> None:
    """Before anything runs, so that no result is lost."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise typer.BadParameter(f"{json_file.parent} is no folder", param_hint="--json")
    if report is not None and report.exists() and not report.is_dir():
        raise typer.BadParameter(f"{report} is no folder", param_hint="--report")
    if report is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--report needs matplotlib: `pip install matplotlib`, or install neox-serve[plot]")


def _notes(given: "Workload", chosen: "SimulationConfig", calibration: Path | None, gpu: str, size: int) -> list[str]:
    """What is simulated, in sentences, and what it takes at the least; with calibration tables, how well they are met."""
    from autoscaling.simulator.lower_bound import min_gpu_hours

    what = f"{given.name}: {given.duration_s:.0f} s, the first {chosen.warmup_s:.0f} of which do not count."
    bounds = f"{chosen.spec.min_replicas} to {chosen.spec.max_replicas}"
    notes = [f"{what} Replicas of GPT-NeoX-20B on {gpu} x {size}, start-up {chosen.startup_s:.0f} s, {bounds}; seed {chosen.seed}."]
    least = min_gpu_hours(given.requests(chosen.seed), chosen.spec, chosen.warmup_s, given.duration_s)
    notes.append(f"Computing alone takes {least:.2f} GPU-hours: no policy can do with less.")
    if gpu == "h100-80":
        notes.append("H100: the A100's step times, scaled by how much faster Vidur's operators of a 20B model run there.")
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
    """A bar on a terminal, told what is done and how much there is."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _tell(curves: "dict[str, Curve]", chosen: "SimulationConfig", notes: list[str], json_file: Path | None, report: Path | None) -> None:
    from cluster.views.simulation import figures, table, write_report

    targets = chosen.spec.targets
    print_view(table(curves, targets))
    if json_file is not None:
        json_file.write_text(json.dumps(figures(curves, targets), indent=1), encoding="utf-8")
    if report is not None:
        typer.echo(f"Report: {write_report(report, 'Scaling policies, simulated', notes, curves, targets)}", err=True)
