"""The evaluation of a comparison on real engines: open loops, starts, memory, and pictures."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from neox_serve.loadgen.arrivals import OpenLoop
from neox_serve.loadgen.records import Record
from neox_serve.loadgen.summaries import summarize
from tests.bench import results
from tests.bench.engines import engine_comparison, engine_plot
from tests.bench.engines.comparison import Comparison, Later, Run, Start, start_to_first_token_s
from tests.bench.engines.engine_comparison import FULL, GOALS, MANY, NEOX, OPENAI, SMOKE, Size
from tests.bench.view import View
from tests.bench.workloads import Workload

SIZE = Size(3, 2, 2, (OPENAI,), (64,), open_rounds=frozenset({2}), open_s=10.0)


def run(system: str, duration_s: float, number: int = 0) -> Run:
    """Returns a run of 64 requests with 128 tokens that took this long."""
    workload = Workload("64 streams", 64, 64, 64, 128, 4096, number)
    records = [Record(64, 0.0, 0.0, 0.1, duration_s, tuple(range(128)), 128, 0.1) for _ in range(64)]
    return Run(system, workload, summarize(records, max_concurrency=64, system_cpu_s=1.0, client_cpu_s=0.1), records, 512.0)


def test_open_loops_are_fractions_of_the_slowest_systems_throughput() -> None:
    loads = engine_comparison.open_loops(Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)]), SIZE)
    assert [load.rate_rps for load in loads] == pytest.approx([0.3 * 8, 0.6 * 8, 0.8 * 8])
    assert [load.requests for load in loads] == [24, 48, 64]
    assert {load.name for load in loads} == {"open loop, 30%", "open loop, 60%", "open loop, 80%"}
    assert isinstance(loads[0].load().arrivals, OpenLoop)


def test_open_loops_have_the_same_arrivals_on_all_systems_and_new_ones_each_round() -> None:
    load = engine_comparison.open_loops(Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)]), SIZE)[0]
    assert load.load() == load.load()
    assert load.in_round(1).load().seed != load.in_round(2).load().seed


def test_start_ratio_compares_the_starts_of_each_round() -> None:
    starts = [Start(NEOX, (0,), 20.0), Start(OPENAI, (0, 1), 16.0), Start(NEOX, (1, 2), 32.0), Start(OPENAI, (2,), 10.0)]
    found = Comparison([], starts).start_ratio(NEOX, OPENAI)
    assert (found.low, found.median, found.high, found.rounds) == pytest.approx((1.25, 2.0, 3.2, 3))


def test_start_ratio_system_that_was_not_started_is_rejected() -> None:
    with pytest.raises(KeyError, match="not started"):
        Comparison([], [Start(NEOX, (0,), 20.0)]).start_ratio(NEOX, OPENAI)


def first_record(intended_s: float, first_token_s: float) -> Record:
    """Returns the record of the first request of a started system."""
    return Record(64, intended_s, intended_s, first_token_s, first_token_s, (1,), 1, 0.0)


def test_start_to_first_token_of_a_server_excludes_the_load_generators_start() -> None:
    assert start_to_first_token_s(100.0, 112.0, first_record(intended_s=112.5, first_token_s=112.75)) == 12.25


def test_start_to_first_token_within_the_load_generator_includes_its_start() -> None:
    assert start_to_first_token_s(100.0, None, first_record(intended_s=110.0, first_token_s=110.25)) == 10.25


def test_run_figures_include_memory() -> None:
    comparison = Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)])
    assert comparison.median(NEOX, "64 streams", "resident_mib") == 512.0


def test_later_workloads_depend_only_on_the_first_round() -> None:
    runs = [run(NEOX, 4.0), run(OPENAI, 8.0), run(OPENAI, 99.0, 1)]
    later = Later(lambda first_round: engine_comparison.open_loops(first_round, SIZE), frozenset({2}))
    assert later.of_round(2, runs) == engine_comparison.open_loops(Comparison(runs[:2]), SIZE)
    assert not later.of_round(3, runs)


def test_later_workloads_in_the_first_two_rounds_are_rejected() -> None:
    with pytest.raises(ValueError, match="must not include 0 and 1"):
        Later(lambda _: [], frozenset({1, 2}))


@pytest.mark.parametrize("size", [FULL, GOALS, SMOKE])
def test_sizes_have_enough_requests_and_open_loops_only_in_existing_rounds(size: Size) -> None:
    closed = [load for load in engine_comparison.workloads(size) if load.streams > 1]
    assert MANY in {load.name for load in closed}
    assert all(load.requests >= max(64, 2 * load.streams) for load in closed)
    assert max(size.open_rounds, default=0) < size.rounds


def test_show_open_loop_table_has_lateness_columns() -> None:
    first = Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)])
    load = engine_comparison.open_loops(first, SIZE)[0]
    comparison = Comparison([Run(NEOX, load, each.summary, each.records, 512.0) for each in first.of(NEOX, MANY)])
    shown = StringIO()
    results.show(View(Console(file=shown, width=200)), comparison, [NEOX], load.name)
    assert "2.4 requests per second" in shown.getvalue()
    assert "late p50 ms" in shown.getvalue()


def test_write_draws_the_picture_from_the_result_file(tmp_path: Path) -> None:
    opened = [
        Run(each.system, load, each.summary, each.records, each.resident_mib)
        for each in (run(NEOX, 4.0), run(OPENAI, 8.0))
        for load in engine_comparison.open_loops(Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)]), SIZE)
    ]
    comparison = Comparison([run(NEOX, 4.0), run(OPENAI, 8.0), *opened], [Start(NEOX, (0,), 20.0), Start(OPENAI, (0,), 16.0)])
    result = results.write(tmp_path, comparison, {}, 0.0, {})
    assert engine_plot.write(result).read_bytes().startswith(b"\x89PNG")


def test_draw_comparison_without_open_loops_works(tmp_path: Path) -> None:
    comparison = Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)], [Start(NEOX, (0,), 20.0), Start(OPENAI, (0,), 16.0)])
    result = results.write(tmp_path, comparison, {}, 0.0, {})
    assert engine_plot.write(result) == tmp_path / "engines.png"
