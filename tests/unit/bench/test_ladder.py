"""The overhead ladder: timestamps, search, results and roles, and the dispatcher on an engine."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from neox_serve.core.cluster import Terms
from neox_serve.core.errors import ServeError
from neox_serve.core.types import GenerationRequest, Pool, Stopping
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.loadgen.records import Arrival, Response, record
from neox_serve.loadgen.summaries import summarize
from neox_serve.loadgen.targets.grpc_gateway import GatewayTarget
from neox_serve.v1 import inference_service_pb2 as pb
from tests.bench.engines.comparison import NotComparableError
from tests.bench.ladder import plot, report
from tests.bench.ladder.engine_dispatcher import EngineDispatcher
from tests.bench.ladder.figures import Climb, FanIn, Ladder, Measured, Stall
from tests.bench.ladder.rungs import BARE, ITL_S, ROLES, ROUTER, role_of
from tests.bench.ladder.search import highest_carried
from tests.bench.ladder.stamped_target import StampedTarget
from tests.bench.ladder.stamps import Lag, lag, lags, stamps_of
from tests.bench.workloads import Workload
from tests.clusters import GATEWAY
from tests.fakes.virtual_clock import VirtualClock

TOKENS = 10


def test_stamps_of_coalesced_chunk_returns_one_per_token() -> None:
    assert stamps_of("12.250000 12.500000 ", 2) == (12.25, 12.5)


def test_stamps_of_message_without_tokens_is_empty() -> None:
    assert stamps_of("", 0) == ()


def test_stamps_of_fewer_stamps_than_tokens_is_rejected() -> None:
    with pytest.raises(ValueError, match="1 timestamps for 2 tokens"):
        stamps_of("12.250000 ", 2)


def test_stamps_of_other_text_is_rejected() -> None:
    with pytest.raises(ValueError):
        stamps_of("def main", 2)


def test_lags_of_coalesced_chunk_differ_by_token() -> None:
    assert lags(13.0, "12.250000 12.500000 ", 2) == [0.75, 0.5]


def test_lag_percentiles_are_interpolated() -> None:
    found = lag([0.001 * number for number in range(101)])
    assert found.tokens == 101
    assert [found.p50_s, found.p99_s, found.highest_s] == pytest.approx([0.05, 0.099, 0.1])


def test_lag_without_tokens_is_zero() -> None:
    assert lag([]) == Lag(0, 0.0, 0.0, 0.0)


def chunk(text: str, *token_ids: int) -> bytes:
    """Returns a message of a stream."""
    return pb.StreamGenerateResponse(chunk=pb.StreamChunk(text=text, token_ids=token_ids)).SerializeToString()


def test_stamped_target_ignores_the_ramp_of_each_response() -> None:
    target = StampedTarget(GatewayTarget([]), ramp_tokens=2)
    stamped = [(1.5, chunk("1.000000 ", 7)), (2.0, chunk("1.250000 1.500000 ", 8, 9)), (2.5, chunk(""))]
    answers = [target.decode(stamped) for _ in range(2)]
    assert answers[0] == Response([Arrival(1.5, (7,)), Arrival(2.0, (8, 9)), Arrival(2.5, ())])
    assert list(target.lags_s) == [0.5, 0.5]


class Measurer:
    """Sustains a given number of streams, except in some of its measurements."""

    def __init__(self, max_streams: int, hiccups: tuple[int, ...] = ()) -> None:
        self._max_streams, self._hiccups = max_streams, hiccups
        self.measured: list[int] = []

    def __call__(self, streams: int) -> tuple[int, bool]:
        self.measured.append(streams)
        return streams, streams <= self._max_streams and len(self.measured) not in self._hiccups


def highest(measurer: Measurer) -> int | None:
    """Returns the highest of four levels that was sustained."""
    found = highest_carried((16, 32, 64, 96), measurer, lambda measured: measured[1])
    return found and found[0]


def test_highest_carried_stops_at_the_first_level_that_fails_twice() -> None:
    measurer = Measurer(max_streams=32)
    assert highest(measurer) == 32
    assert measurer.measured == [16, 32, 64, 64]


def test_highest_carried_single_failure_of_a_level_is_ignored() -> None:
    measurer = Measurer(max_streams=64, hiccups=(2,))
    assert highest(measurer) == 64
    assert measurer.measured == [16, 32, 32, 64, 96, 96]


def test_highest_carried_all_levels_sustained_returns_the_last() -> None:
    assert highest(Measurer(max_streams=1000)) == 96


def test_highest_carried_first_level_not_sustained_returns_none() -> None:
    measurer = Measurer(max_streams=0)
    assert highest(measurer) is None
    assert measurer.measured == [16, 16]


def measured(*, itl_s: float = ITL_S, p99_s: float = 0.005, failed: int = 0, number: int = 0) -> Measured:
    """Returns the result of two requests on an engine with this step interval."""
    times_s = [itl_s * step for step in range(TOKENS)]
    arrivals = [Arrival(at_s, (1,)) for at_s in times_s]
    errors = ["lost" if index < failed else None for index in range(2)]
    records = [record(4, arrivals, intended_s=0.0, sent_s=0.0, end_s=times_s[-1], error=error) for error in errors]
    workload = Workload("w", 2, 2, prompt_tokens=4, output_tokens=TOKENS, vocabulary_size=100, round=number)
    cpu_s = dict.fromkeys(ROLES, 0.0) | {"client": 0.001, "gateway": 0.002}
    return Measured(workload, summarize(records, max_concurrency=2), Lag(2 * TOKENS, 0.001, p99_s, 0.02), cpu_s)


def test_carried_load_on_schedule_with_little_lag_is_true() -> None:
    assert measured().carried


def test_carried_too_much_lag_is_false() -> None:
    assert not measured(p99_s=0.011).carried


def test_carried_engine_behind_schedule_is_false() -> None:
    behind = measured(itl_s=1.1 * ITL_S)
    assert behind.pace_fraction == pytest.approx(1 / 1.1)
    assert not behind.carried


def test_carried_failed_request_is_false() -> None:
    assert not measured(failed=1).carried


def test_measured_cpu_time_is_per_token_and_per_request() -> None:
    one = measured()
    assert one.cpu_us_per_token("gateway") == pytest.approx(100.0)
    assert one.cpu_us_per_request("gateway") == pytest.approx(1000.0)
    assert one.system_cpu_us_per_request == pytest.approx(1000.0)


def climb(rung: str, number: int, many: Measured) -> Climb:
    """Returns the results of one rung in one round."""
    return Climb(rung, number, measured(), measured(), measured(), many, None if number else measured())


def ladder(many_on_router: Measured | None = None) -> Ladder:
    """Returns a ladder of two rungs and two rounds. 256 streams are half as fast on the higher rung."""
    slow = many_on_router or measured(itl_s=2 * ITL_S)
    climbs = [climb(rung, number, many) for number in range(2) for rung, many in ((BARE, measured()), (ROUTER, slow))]
    healthy = Lag(100, 0.001, 0.004, 0.01)
    stalls = [Stall(ROUTER, number, healthy, replace(healthy, p99_s=0.004 + 0.002 * number)) for number in range(2)]
    return Ladder((BARE, ROUTER), tuple(climbs), tuple(stalls), (FanIn(ROUTER, measured()),))


def test_ladder_throughput_of_the_top_is_relative_to_the_bare_server() -> None:
    assert ladder().fake_over_bare_grpc().median == pytest.approx(0.5)


def test_ladder_stalled_lag_is_relative_to_the_same_round() -> None:
    found = ladder().stalled_over_healthy_lag()
    assert [found.low, found.high] == pytest.approx([1.0, 1.5])


def test_ladder_round_without_sustained_level_counts_as_zero() -> None:
    found = ladder().max_carried()
    assert found.low == 0.0
    assert found.high > 0.0


def test_ladder_failed_request_raises_instead_of_a_ratio() -> None:
    with pytest.raises(NotComparableError, match="1 failed"):
        ladder(measured(failed=1)).fake_over_bare_grpc()


def test_ladder_rung_that_was_not_measured_is_rejected() -> None:
    with pytest.raises(KeyError):
        ladder().added_ttft_ms("everything")


def test_write_includes_every_rung_and_ratio(tmp_path: Path) -> None:
    content = json.loads(report.write(tmp_path, ladder(), {}, 0.0).read_text(encoding="utf-8"))
    assert list(content["rungs"]) == [BARE, ROUTER]
    assert content["rungs"][ROUTER]["CPU us/token"]["gateway"]["median"] == pytest.approx(100.0)
    assert [value["rounds"] for value in content["ratios"].values()] == [2, 2]


def test_plot_writes_a_picture(tmp_path: Path) -> None:
    assert plot.write(tmp_path, ladder()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        (("python", "-m", "tests.bench.ladder.hosts.bare", "s", "f"), "server"),
        (("python", "-m", "tests.bench.ladder.hosts.engine_gateway", "s", "f"), "gateway"),
        ((GATEWAY,), "gateway"),
        (("ray::ServeController",), "ray rest"),
        ((), "ray rest"),
    ],
)
def test_role_of_is_derived_from_the_command_line(command_line: tuple[str, ...], role: str) -> None:
    assert role_of(command_line) == role


@pytest.fixture
def engine() -> FakeEngine:
    """An engine whose time passes only while it waits."""
    return FakeEngine(FakeTiming(ttft_s=0.5, itl_s=0.1), clock=VirtualClock().clock)


async def test_engine_dispatcher_stream_brings_every_token(engine: FakeEngine) -> None:
    dispatcher = EngineDispatcher(engine)
    stream = await dispatcher.open_generation("m", GenerationRequest("r", (1, 2), Stopping(max_tokens=3)), Terms())
    deltas = list(await stream.next())
    while not deltas[-1].end:
        deltas += await stream.next()
    assert sum(len(sequence.token_ids) for delta in deltas for sequence in delta.sequences) == 3
    assert [dispatcher.ready_replicas(pool) for pool in (Pool.GENERATION, Pool.EMBEDDING)] == [1, 0]
    await engine.close()


async def test_engine_dispatcher_cancelled_stream_frees_the_engine(engine: FakeEngine) -> None:
    stream = await EngineDispatcher(engine).open_generation("m", GenerationRequest("r", (1, 2), Stopping(max_tokens=1000)), Terms())
    await stream.next()
    stream.cancel()
    await asyncio.sleep(0)
    assert engine.stats().running_requests == 0
    await engine.close()


async def test_engine_dispatcher_failed_request_raises_to_its_reader(engine: FakeEngine) -> None:
    stream = await EngineDispatcher(engine).open_generation("m", GenerationRequest("r", (1, 2), Stopping(max_tokens=1000)), Terms())
    engine.die()
    with pytest.raises(ServeError):
        await stream.next()
    await engine.close()
