"""Validation of the simulator against a real cluster.

The step times of the built-in model are fitted to batches that the cluster has run. Then other traffic is both run on the cluster and
simulated, at several loads. The time that gateway, router and link add to each first token is not part of an engine step. It is measured
with single requests and added to the simulated times. Because a machine's speed changes within minutes, each round fits and compares anew.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, median

from autoscaling.signals import PoolSpec
from autoscaling.simulator.calibration import Fit, Latency, fit
from autoscaling.simulator.cluster import simulate
from autoscaling.simulator.compared_policies import static
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.engine import EngineShape
from autoscaling.simulator.engine import Request as SimulatedRequest
from autoscaling.simulator.hardware import capacity_of
from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop
from neox_serve.loadgen.generator import LoadGenerator, load_generator
from neox_serve.loadgen.load import Load, Scheduled, scheduled
from neox_serve.loadgen.records import Record
from neox_serve.loadgen.workloads import Request, Synthetic, prompt_ids
from neox_serve.model.step_time import StepTime
from tests.bench.engines.systems import NeoxServe
from tests.bench.view import View

_KV_GIB = 0.5
_KV_TOKENS = int(_KV_GIB * 2**30) // (2 * 6 * 256 * 4)
_STEP_TOKENS = 2048
_MAX_SEQUENCES = 64
VALUES: Mapping[str, object] = {
    "generation": {
        "engine": {
            "dtype": "float32",
            "kv_cache_gib": _KV_GIB,
            "max_num_seqs": _MAX_SEQUENCES,
            "max_num_batched_tokens": _STEP_TOKENS,
        }
    }
}
"""Settings of the cluster."""
_SHAPES = ((16, 48), (128, 96), (400, 64), (800, 48))
_BATCHES = (1, 4, 12, 32)
_WAVES = 2
_ROUNDS = 3
_LOADS = (0.3, 0.6)
"""Loads as fractions of a replica's capacity according to the fit."""
_RUN_S = 25.0


@dataclass(frozen=True, slots=True)
class Varied:
    """Requests with log-normal lengths. It implements the load generator's Workload."""

    name: str = "varied"
    """Name of the workload."""
    prompt_tokens: float = 150.0
    """Median prompt length."""
    output_tokens: float = 60.0
    """Median output length."""
    sigma: float = 0.6
    """Standard deviation of the logarithm of the lengths."""
    seed: int = 5
    """Seed of the requests."""

    def requests(self) -> Iterator[Request]:
        """Yields requests without end."""
        rng, ids = Random(self.seed), prompt_ids(4_096)
        while True:
            prompt, output = (
                max(2, round(mean * math.exp(self.sigma * rng.gauss(0, 1)))) for mean in (self.prompt_tokens, self.output_tokens)
            )
            yield Request(tuple(rng.choices(ids, k=min(prompt, 1_000))), min(output, 500))


@dataclass(frozen=True, slots=True)
class Medians:
    """Median latencies of a run."""

    ttft_s: float
    """Time to first token, in seconds."""
    tpot_s: float
    """Time per output token, in seconds."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The comparison at one load in one round."""

    load: float
    """Load as a fraction of the capacity."""
    rate_rps: float
    """Requests per second."""
    real: Medians
    """Latencies on the cluster."""
    simulated: Medians
    """Latencies in the simulator."""


def ttft_error(found: Sequence[Validated]) -> float:
    """Returns the relative error of the median TTFT: the median over the rounds, and the maximum over the loads."""
    return _error(found, lambda medians: medians.ttft_s)


def tpot_error(found: Sequence[Validated]) -> float:
    """Returns the relative error of the median TPOT: the median over the rounds, and the maximum over the loads."""
    return _error(found, lambda medians: medians.tpot_s)


def _error(found: Sequence[Validated], of: Callable[[Medians], float]) -> float:
    return max(median(abs(of(one.simulated) / of(one.real) - 1) for one in found if one.load == load) for load in _LOADS)


def run(folder: Path, view: View) -> list[Validated]:
    """Starts a cluster, and in each round fits the simulator to it and compares both. Raises StartError if the cluster does not start."""
    found: list[Validated] = []
    with (
        view.step("validation of the simulator"),
        NeoxServe(VALUES).running(folder) as system,
        load_generator(system.target, folder, system.client_environment) as generator,
        view.progress("rounds", _ROUNDS) as progress,
    ):
        generator.run(Load(Synthetic("warm-up", 64, 100, 16), ClosedLoop(32)))
        for done in range(_ROUNDS):
            fitted, overhead_s = calibrate(generator, done)
            found += [_validate(generator, fitted.step_time, overhead_s, load, done) for load in _LOADS]
            progress(done + 1)
    headers = ("load", "requests/s", "real TTFT ms", "simulated", "real TPOT ms", "simulated")
    view.table("Medians on the cluster and in the simulator", headers, [_row(one) for one in found])
    return found


def _row(one: Validated) -> list[str]:
    times_s = (one.real.ttft_s, one.simulated.ttft_s, one.real.tpot_s, one.simulated.tpot_s)
    return [f"{one.load:.1f}", f"{one.rate_rps:.1f}", *(f"{time_s * 1e3:.2f}" for time_s in times_s)]


def calibrate(generator: LoadGenerator, done: int) -> tuple[Fit, float]:
    """Returns step times fitted to batches, and the additional time of a first token in seconds. `done` is the number of completed
    rounds."""
    overhead_s = _overhead_s(generator)
    latencies = []
    for prompt, output in _SHAPES:
        for batch in _BATCHES:
            work = Synthetic(f"{prompt}+{output} x {batch}", batch * _WAVES, prompt, output, round=done)
            records = _ended(generator, Load(work, ClosedLoop(batch)))
            # The requests of the first wave start together; each later one starts when an earlier one completes.
            latencies.append(Latency(batch, prompt, output, fmean(one.e2e_s for one in records) - overhead_s))
    return fit(latencies), overhead_s


def _overhead_s(generator: LoadGenerator) -> float:
    records = _ended(generator, Load(Synthetic("short", 20, 2, 24), OpenLoop(2.5, cv=0.0)))
    return median(_ttft_s(one) for one in records) - median(one.tpot_s or 0.0 for one in records)


def _validate(generator: LoadGenerator, step_time: StepTime, overhead_s: float, load: float, done: int) -> Validated:
    rate_rps = load / _replicas_of_one(step_time)
    given = Load(Varied(seed=done), OpenLoop(rate_rps), duration_s=_RUN_S, seed=done)
    records = _ended(generator, given)
    real = Medians(median(map(_ttft_s, records)), median(one.tpot_s for one in records if one.tpot_s is not None))
    return Validated(load, rate_rps, real, _simulated(scheduled(given), step_time, overhead_s))


def _replicas_of_one(step_time: StepTime) -> float:
    """Returns the replicas that one request of mean lengths per second keeps busy."""
    mean = Varied()
    prompt, output = (length * math.exp(mean.sigma**2 / 2) for length in (mean.prompt_tokens, mean.output_tokens))
    return capacity_of(_shape(step_time), _MAX_SEQUENCES).replicas_of_request(prompt, output, tpot_s=0.1)


def _shape(step_time: StepTime) -> EngineShape:
    return EngineShape(step_time, _KV_TOKENS, step_tokens=_STEP_TOKENS, max_sequences=_MAX_SEQUENCES)


def _simulated(requests: Sequence[Scheduled], step_time: StepTime, overhead_s: float) -> Medians:
    shape = _shape(step_time)
    config = SimulationConfig(PoolSpec(1, 1, capacity_of(shape, _MAX_SEQUENCES)), shape, startup_s=60.0)
    simulated = (SimulatedRequest(at_s, len(request.prompt), request.output_tokens) for at_s, request in requests)
    result = simulate(simulated, static(1), config, _RUN_S)
    return Medians(median(result.ttft_s) + overhead_s, median(result.tpot_s))


def _ended(generator: LoadGenerator, load: Load) -> list[Record]:
    """Runs a load and returns its records. Raises ValueError if a request failed."""
    records = generator.run(load).records
    if failed := [one.error for one in records if one.error]:
        raise ValueError(f"{len(failed)} of {len(records)} requests failed: {failed[0]}")
    return records


def _ttft_s(one: Record) -> float:
    if one.ttft_s is None:
        raise ValueError("a request has no token")
    return one.ttft_s
