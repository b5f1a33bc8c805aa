"""Bulk jobs: throughput compared with vLLM's offline `LLM.generate` on the same engine settings, and the effect on interactive requests.

First, `LLM.generate` and a job with its own engine take turns on one engine. Then `ray.data.llm` runs. Then each round starts a cluster for
jobs through the cluster. A job is the command that Ray runs, and its last line of output gives its rate from its first request to its last
row. The rate of `LLM.generate` is also measured from its first request.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from deployments.jobs.bulk.run import MODULE
from neox_serve.client import Client
from neox_serve.core.types import Pool
from neox_serve.engine.environment import engine_environment
from neox_serve.loadgen.arrivals import OpenLoop
from neox_serve.loadgen.generator import load_generator
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.summaries import percentile
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec
from neox_serve.loadgen.workloads import Synthetic
from neox_serve.settings import restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.engines.engine_comparison import VALUES
from tests.bench.engines.systems import cluster_values
from tests.bench.faults.cancellation import NotMeasuredError
from tests.bench.processes import system_process
from tests.bench.view import View
from tests.clusters import running_cluster
from tests.run_arguments import bulk_run, command_of

_ROUNDS, _TURNS = 3, 5
_ROWS, _PROMPT_TOKENS, _OUTPUT_TOKENS = 1_000, 64, 64
_CONCURRENCY = 160
"""Number of concurrent requests of a job, slightly more than the engine's batch size."""
_INTERACTIVE_RPS, _INTERACTIVE_S, _LEAD_IN_S = 4.0, 28.0, 4.0
"""Rate, duration and lead-in of the interactive load. Requests of the lead-in are ignored, because the job still fills the whole batch."""
_HOST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Bulk:
    """The results, each a median."""

    over_offline: float
    """Throughput of a job through the cluster relative to the median of LLM.generate."""
    own_over_offline: float
    """Throughput of a job with its own engine relative to LLM.generate in the same turn."""
    own_over_ray_data: float
    """Throughput of a job with its own engine relative to ray.data.llm."""
    ttft_ratio: float
    """p99 TTFT of interactive requests with a running job relative to that without one."""


def run(folder: Path, view: View) -> Bulk:
    """Measures throughput and TTFT. Raises StartError if a cluster does not start, and NotMeasuredError if a row or request failed."""
    settings = folder / "settings.json"
    settings.write_text(json.dumps(restore(dict(VALUES)).model_dump(mode="json")), encoding="utf-8")
    rows, endless = _rows(folder / "rows.jsonl", _ROWS), _rows(folder / "endless.jsonl", 40 * _ROWS)
    found = list[tuple[float, float, float]]()
    with view.step("bulk: LLM.generate, and a job on the same engine"):
        turns = _turns(settings, rows, folder)
    with view.step("bulk: ray.data.llm"):
        ray_data = _ray_data(settings, rows, folder)
    with view.progress("bulk: rounds", _ROUNDS) as progress:
        for number in range(_ROUNDS):
            here = folder / str(number)
            here.mkdir()
            with running_cluster(here, cluster_values(VALUES)) as cluster:
                _warm_up(cluster.address)
                job = _job_rate(cluster.address, rows, here)
                without_job_ms, with_job_ms = _interactive(cluster.address, endless, here)
            found.append((job, with_job_ms, without_job_ms))
            progress(number + 1)
    offline = median(offline for offline, _ in turns)
    view.table(
        "A job with its own engine",
        ["LLM.generate tok/s", "job tok/s", "ratio"],
        [[f"{offline:.0f}", f"{own:.0f}", f"{own / offline:.3f}"] for offline, own in turns],
    )
    view.say(f"ray.data.llm: {ray_data:.0f} tok/s")
    view.table(
        f"A job through the cluster; LLM.generate {offline:.0f} tok/s",
        ["job tok/s", "ratio", "p99 TTFT with a job, ms", "without, ms", "ratio"],
        [
            [f"{job:.0f}", f"{job / offline:.3f}", f"{with_job_ms:.1f}", f"{without_job_ms:.1f}", f"{with_job_ms / without_job_ms:.2f}"]
            for job, with_job_ms, without_job_ms in found
        ],
    )
    return Bulk(
        median(job / offline for job, _, _ in found),
        median(own / offline for offline, own in turns),
        median(own for _, own in turns) / ray_data,
        median(with_job_ms / without_job_ms for _, with_job_ms, without_job_ms in found),
    )


def _rows(path: Path, count: int) -> Path:
    work = Synthetic(path.stem, count, _PROMPT_TOKENS, _OUTPUT_TOKENS)
    with path.open("w", encoding="utf-8") as file:
        for request in islice(work.requests(), count):
            row = {"prompt": list(request.prompt), "max_tokens": _OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0}
            file.write(json.dumps(row) + "\n")
    return path


def _turns(settings: Path, rows: Path, folder: Path) -> list[tuple[float, float]]:
    """Returns the tokens per second of LLM.generate and of the job in each turn."""
    log, environment = folder / "offline.log", engine_environment(PoolEngineSettings.from_settings(restore(dict(VALUES)), Pool.GENERATION))
    arguments = ["-m", "tests.bench.jobs.offline_host", str(settings), str(rows), str(_TURNS), str(folder)]
    with system_process(arguments, environment, log) as process:
        if process.wait(_HOST_TIMEOUT_S) != 0:
            raise NotMeasuredError(f"LLM.generate or the job failed; see {log}")
    found = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return list(zip(found["offline"], found["own"], strict=True))


def _ray_data(settings: Path, rows: Path, folder: Path) -> float:
    """Returns the tokens per second of Ray's batch inference."""
    log = folder / "ray-data.log"
    with system_process(["-m", "tests.bench.jobs.ray_data_host", str(settings), str(rows)], {}, log) as process:
        if process.wait(_HOST_TIMEOUT_S) != 0:
            raise NotMeasuredError(f"ray.data.llm failed; see {log}")
    lines = log.read_text(encoding="utf-8").splitlines()
    return float(next(line for line in reversed(lines) if re.fullmatch(r"[\d.]+", line)))


def _warm_up(address: str) -> None:
    with Client(address) as client:
        client.generate([[number, 5] for number in range(16)], max_tokens=8, temperature=0)


def _job_rate(address: str, rows: Path, folder: Path) -> float:
    """Returns the tokens per second that the job reports."""
    with _job(address, rows, folder / "out.jsonl") as process:
        _, output_text = process.communicate(timeout=600)
    if process.returncode != 0 or f"{_ROWS:,} rows in" not in output_text or ", 0 with an error." not in output_text:
        raise NotMeasuredError(f"the job failed: {output_text}")
    return float(re.findall(r"([\d,]+) tok/s", output_text)[-1].replace(",", ""))


@contextmanager
def _job(address: str, rows: Path, output: Path) -> "Iterator[subprocess.Popen[str]]":
    run = bulk_run("generate", str(rows), str(output), address, output.stem, concurrency=_CONCURRENCY)
    process = subprocess.Popen(["bash", "-c", f"exec {command_of(MODULE, run)}"], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _interactive(address: str, rows: Path, folder: Path) -> tuple[float, float]:
    """Returns the p99 TTFT of interactive requests in ms, without a job and with a job that runs all the time."""
    with load_generator(GatewaySpec(address, 1), folder) as generator:

        def p99_ms(number: int) -> float:
            work = Synthetic("interactive", None, _PROMPT_TOKENS, _OUTPUT_TOKENS, round=number)
            load = Load(work, OpenLoop(_INTERACTIVE_RPS), duration_s=_INTERACTIVE_S, seed=number)
            records = generator.run(load, max_silence_s=120).records
            if failed := [one.error for one in records if one.ttft_s is None]:
                raise NotMeasuredError(f"an interactive request failed: {failed[0]}")
            since_s = min(one.intended_s for one in records) + _LEAD_IN_S
            return 1e3 * percentile([one.ttft_s for one in records if one.ttft_s is not None and one.intended_s >= since_s], 0.99)

        p99_ms(0)
        without_job_ms = p99_ms(1)
        with _job(address, rows, folder / "endless.jsonl") as process:
            time.sleep(8.0)
            with_job_ms = p99_ms(2)
            if process.poll() is not None:
                raise NotMeasuredError("the job ended before the interactive load")
    return without_job_ms, with_job_ms
