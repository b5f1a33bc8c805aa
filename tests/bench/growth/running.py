"""Measurement of the curves. One system runs at a time."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neox_serve.loadgen.generator import LoadGenerator, load_generator
from neox_serve.loadgen.processes import CpuMeter, family
from neox_serve.loadgen.summaries import summarize
from neox_serve.model.model_files import locate_tokenizer, read_facts
from tests.bench.engines import engine_comparison
from tests.bench.engines.systems import AsyncLlm, NeoxServe, Running, System
from tests.bench.growth import plot
from tests.bench.growth.points import (
    ASYNC_LLM,
    FAKE,
    GATEWAYS,
    REAL,
    REPLICAS,
    Measured,
    Point,
    Size,
    by_prompt,
    by_streams,
    in_rounds,
    wide,
)
from tests.bench.ladder.client import role_meters
from tests.bench.ladder.rungs import CLIENT, values
from tests.bench.machine import busy_fraction, machine_facts
from tests.bench.metering import run_metered
from tests.bench.processes import importing_tests
from tests.bench.router import decisions as router_decisions
from tests.bench.router.decisions import Decisions
from tests.bench.router.scale import DECISIONS
from tests.bench.view import View

_CHANNELS = 8


def run(size: Size, folder: Path, view: View) -> list[Measured]:
    """Measures all points, writes result.json and growth.png, and shows tables. Raises StartError if a system does not start."""
    busy = busy_fraction()
    measured = [each for number, part in enumerate(_parts(size)) for each in _measured(*part, size, folder / f"{number:02d}", view)]
    router = [_decisions(replicas, view) for replicas in size.routed_to]
    path = _write(folder, measured, router, busy)
    _show(view, measured)
    view.warn_if_busy(busy)
    view.say(f"All results: {path}\nPlot: {plot.write(path)}")
    return measured


def _parts(size: Size) -> Iterator[tuple[System, list[Point]]]:
    """Yields each system with the points that are measured on it."""
    vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
    single = [*by_streams(size, vocabulary_size), *by_prompt(FAKE, size, vocabulary_size)]
    single += [wide(over, 1, size, vocabulary_size) for over in (GATEWAYS, REPLICAS)]
    yield _fake(), single
    for count in size.gateways[1:]:
        yield _fake(gateways=count), [wide(GATEWAYS, count, size, vocabulary_size)]
    for count in size.replicas[1:]:
        yield _fake(replicas=count), [wide(REPLICAS, count, size, vocabulary_size)]
    if size.real:
        yield NeoxServe(engine_comparison.VALUES), by_prompt(REAL, size, vocabulary_size)
        yield AsyncLlm(engine_comparison.VALUES), by_prompt(ASYNC_LLM, size, vocabulary_size)


def _fake(gateways: int = 1, replicas: int = 1) -> System:
    settings: dict[str, Any] = dict(values())
    settings["gateway"] = {"processes": gateways}
    settings["generation"] = settings["generation"] | {
        "replicas": {"min": replicas, "initial": replicas, "max": replicas, "max_requests": 4096}
    }
    return NeoxServe(settings, channels=_CHANNELS)


def _measured(system: System, points: Sequence[Point], size: Size, folder: Path, view: View) -> Iterator[Measured]:
    folder.mkdir(parents=True)
    with ExitStack() as to_end:
        with view.step(f"{points[0].system}: starting"):
            running = to_end.enter_context(system.running(folder))
        environment = {**running.client_environment, **importing_tests()}
        generator = to_end.enter_context(load_generator(running.target, folder, environment))
        generator.run(points[0].workload.warm_up())
        for point in in_rounds(points, size):
            yield _measure(running, generator, point, view)


def _measure(running: Running, generator: LoadGenerator, point: Point, view: View) -> Measured:
    workload = point.workload
    if running.processes is None:
        meters = {"engine": CpuMeter(lambda: family(generator.process))}
    else:
        meters = {CLIENT: CpuMeter(lambda: [generator.process]), **role_meters(running)}
    with view.progress(f"{point.system}: {workload.name}, round {workload.round + 1}", workload.requests) as on_progress:
        records, cpu_s = run_metered(generator, workload.load(), meters, on_progress)
    return Measured(point, summarize(records, max_concurrency=workload.streams), cpu_s)


def _decisions(replicas: int, view: View) -> Decisions:
    with view.step(f"router: {replicas} replicas"):
        return router_decisions.measure(replicas, DECISIONS)


def _write(folder: Path, measured: Sequence[Measured], router: Sequence[Decisions], busy_before: float) -> Path:
    content = {
        "machine": machine_facts(),
        "busy_fraction_before": busy_before,
        "points": [
            {
                "over": each.point.over,
                "at": each.point.at,
                "system": each.point.system,
                "workload": asdict(each.point.workload),
                "cpu_s": each.cpu_s,
                "system_cpu_us_per_token": each.system_cpu_us_per_token,
                "system_cpu_ms_per_request": each.system_cpu_ms_per_request,
                **each.summary.figures(),
            }
            for each in measured
        ],
        "router": [asdict(each) | {"decisions_per_s": each.decisions_per_s} for each in router],
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def _show(view: View, measured: Sequence[Measured]) -> None:
    for over in dict.fromkeys(each.point.over for each in measured):
        rows = [
            [
                f"{each.point.at} {over}",
                each.point.system,
                f"{each.summary.output_throughput:,.0f}",
                f"{each.summary.ttft_ms.median:,.1f}",
                f"{each.system_cpu_us_per_token:,.0f}",
                f"{each.system_cpu_ms_per_request:,.2f}",
                str(each.summary.failed),
            ]
            for each in measured
            if each.point.over == over
        ]
        view.table(f"By {over}", ["", "system", "tok/s", "TTFT p50 ms", "CPU us/token", "CPU ms/request", "failed"], rows)
