"""The simulated cluster: no request is lost, runs are reproducible, step times match measurements, and policies reach their goals."""

import contextlib
import math
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoscaling.policies.ray_serve import target_ongoing_requests
from autoscaling.policies.token_aware import token_aware
from autoscaling.signals import Targets
from autoscaling.simulator import workloads
from autoscaling.simulator.calibration import FITTED, GPUS, LATENCIES, TENSOR_PARALLEL_SIZES, fit, read_latencies, step_time
from autoscaling.simulator.cluster import simulate
from autoscaling.simulator.config import SimulationConfig
from autoscaling.simulator.engine import EngineShape, Request, SimulatedEngine, Urgency
from autoscaling.simulator.hardware import Hardware
from autoscaling.simulator.result import SimulationResult
from autoscaling.simulator.workloads import Bursts, Workload

CALIBRATION = Path(__file__).parents[3] / "shared" / "data" / "calibration"
needs_tables = pytest.mark.skipif(not CALIBRATION.is_dir(), reason="the calibration tables are not beside this clone")
HARDWARE = Hardware()
ASKS_FOREVER = """
import os, time
from autoscaling.simulator.comparison import process_pool
with process_pool(1) as executor:
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 600).result()
"""


def setting(startup_s: float = 30.0, initial: int = 1, **others: float) -> SimulationConfig:
    spec = HARDWARE.spec(int(others.pop("least", 1)), 32, startup_s, Targets())
    return SimulationConfig(spec, HARDWARE.shape(), startup_s, initial_replicas=initial, **others)  # type: ignore[arg-type]


def run(workload: Workload, which: SimulationConfig) -> SimulationResult:
    return simulate(workload.requests(which.seed), token_aware(), which, workload.duration_s)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), failures=st.sampled_from([0.0, 30.0]), rate=st.floats(0.5, 30))
@example(seed=123, failures=30.0, rate=4.8796)
def test_every_request_is_answered_or_refused_once_despite_failures(seed: int, failures: float, rate: float) -> None:
    workload = workloads.step(rate, 3.0, 60.0, 150.0)
    outcome = run(workload, setting(seed=seed, failures_per_gpu_hour=failures))
    came = sum(1 for _ in workload.requests(seed))
    assert outcome.requests == came
    assert sum(not math.isfinite(ttft_s) for ttft_s in outcome.ttft_s) == outcome.refused
    assert all(ttft_s > 0 for ttft_s in outcome.ttft_s)


def test_outcome_depends_on_the_seed() -> None:
    workload = workloads.diurnal(8.0, day_s=900.0, bursts=Bursts(per_day=2))
    first, again, other = (run(workload, setting(seed=seed)) for seed in (1, 1, 2))
    assert (first.gpu_s, list(first.ttft_s), first.actions) == (again.gpu_s, list(again.ttft_s), again.actions)
    assert list(first.ttft_s) != list(other.ttft_s)


def test_warm_up_does_not_count() -> None:
    workload = workloads.step(4.0, 1.0, 100.0, 200.0)
    whole, late = run(workload, setting()), run(workload, setting(warmup_s=100.0))
    assert late.requests < whole.requests
    assert late.gpu_s <= whole.gpu_s - 100.0


def test_pool_at_zero_wakes_for_the_first_request_and_holds_it() -> None:
    requests = [Request(700.0 + each, 400, 50) for each in range(3)]
    outcome = simulate(iter(requests), token_aware(), setting(least=0), 760.0)
    assert outcome.refused == 0
    assert [action.after for action in outcome.actions] == [0, 1]
    assert 25 < outcome.ttft_s[0] < 40


def test_bulk_alone_never_starts_a_replica() -> None:
    requests = [Request(each / 2, 600, 200, urgency=Urgency.BULK) for each in range(1200)]
    outcome = simulate(iter(requests), token_aware(), setting(), 600.0)
    assert max(outcome.timeline.ready) == 1
    assert outcome.bulk_completed == 1200


def test_token_aware_costs_less_than_ongoing_requests_at_the_same_promise() -> None:
    workload = workloads.diurnal(12.0, day_s=3600.0, bursts=Bursts(per_day=3))
    which = setting(startup_s=60.0, initial=3, warmup_s=600.0)
    ours = run(workload, which)
    peer = simulate(workload.requests(0), target_ongoing_requests(20.0), which, workload.duration_s)
    targets = which.spec.targets
    assert ours.attainment_fraction(targets) >= 0.98
    assert peer.attainment_fraction(targets) >= 0.98
    assert ours.gpu_hours < peer.gpu_hours


@pytest.mark.parametrize("startup_s", [30.0, 90.0])
def test_fivefold_step_recovers_within_one_and_a_half_startups(startup_s: float) -> None:
    workload = workloads.step(4.0, 5.0, 900.0, 1200.0)
    outcome = run(workload, setting(startup_s=startup_s, initial=2))
    assert outcome.recovery_s(900.0, Targets()) <= 1.5 * startup_s


def test_simulations_end_with_their_parent_process() -> None:
    asking = subprocess.Popen([sys.executable, "-c", ASKS_FOREVER], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    working = int(asking.stdout.readline())
    asking.kill()
    asking.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(working).wait(timeout=20)
    asking.stdout.close()


@needs_tables
@pytest.mark.parametrize("size", TENSOR_PARALLEL_SIZES)
def test_step_times_match_the_held_out_table_rows(size: int) -> None:
    found = fit(read_latencies(CALIBRATION / LATENCIES, size))
    assert found.held_out_error_fraction < 0.05
    assert found.held_out_max_error_fraction < 0.25


@needs_tables
@pytest.mark.parametrize("size", TENSOR_PARALLEL_SIZES)
@pytest.mark.parametrize("gpu", GPUS)
def test_stored_step_times_match_the_tables(gpu: str, size: int) -> None:
    found, kept = step_time(CALIBRATION, gpu, size), FITTED[gpu, size]
    for part in ("fixed_s", "per_sequence_s", "per_resident_token_s", "prefill_per_token_s"):
        assert getattr(kept, part) == pytest.approx(getattr(found, part), rel=0.01)


@needs_tables
def test_simulated_batches_take_as_long_as_measured_ones() -> None:
    rows = read_latencies(CALIBRATION / LATENCIES, 2)
    engine_shape = EngineShape(step_time(CALIBRATION, "a100-80", 2), kv_tokens=1 << 30, step_tokens=1 << 20)
    errors = []
    for row in rows:
        engine = SimulatedEngine(engine_shape)
        for _ in range(row.batch):
            engine.submit(Request(0.0, row.input_tokens, row.output_tokens))
        now_s = 0.0
        while not engine.idle:
            now_s = engine.begin(now_s)
            engine.finish(now_s)
        errors.append(abs(now_s / row.total_s - 1))
    assert sum(errors) / len(errors) < 0.05


def test_recording_without_a_column_is_rejected_by_name(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.979960,10\n")
    with pytest.raises(ValueError, match="column 'GeneratedTokens' is missing"):
        workloads.azure(file)
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.979960,ten,5\n")
    with pytest.raises(ValueError, match=r"trace\.csv:2"):
        workloads.azure(file)


def test_recording_keeps_its_bursts_and_fits_the_context(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = "\n".join(f"2023-11-16 18:17:{second:02d}.000000,5000,100" for second in (0, 0, 30))
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows + "\n")
    requests = list(workloads.azure(file, scale=10).requests(0))
    assert len(requests) == 30
    assert all(request.prompt_tokens + request.output_tokens <= workloads.POSITIONS for request in requests)
    assert sum(request.at_s < 3 for request in requests) == 20
