"""What the comparison of real engines makes of its runs: open loops, starts, memory, pictures."""

from pathlib import Path

import pytest

from neox_serve.loadgen.arrivals import OpenLoop
from neox_serve.loadgen.records import Record
from neox_serve.loadgen.summaries import summarize
from tests.bench import engine_comparison, engine_plot, results
from tests.bench.comparison import Comparison, Later, Run, Start, compare
from tests.bench.engine_comparison import NEOX, OPENAI, Size
from tests.bench.view import View
from tests.bench.workloads import Workload

SIZE = Size(2, 2, 2, (OPENAI,), (64,), open_rounds=frozenset({1}), open_s=10.0)


def run(system: str, duration_s: float, number: int = 0, **changes: object) -> Run:
    """64 requests of 128 tokens that took this long."""
    workload = Workload("64 streams", 64, 64, 64, 128, 4096, number)
    records = [Record(64, 0.0, 0.0, 0.1, duration_s, tuple(range(128)), 128, 0.1) for _ in range(64)]
    return Run(system, workload, summarize(records, max_concurrency=64, system_cpu_s=1.0, client_cpu_s=0.1), records, 512.0)


def test_open_loops_are_shares_of_what_the_slowest_system_carries() -> None:
    loads = engine_comparison.open_loops(Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)]), SIZE)
    assert [load.rate_rps for load in loads] == pytest.approx([0.3 * 8, 0.6 * 8, 0.8 * 8])
    assert [load.requests for load in loads] == [24, 48, 64]
    assert {load.name for load in loads} == {"open loop, 30%", "open loop, 60%", "open loop, 80%"}
    assert isinstance(loads[0].load().arrivals, OpenLoop)


def test_open_loops_start_their_requests_alike_on_all_systems_and_anew_each_round() -> None:
    load = engine_comparison.open_loops(Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)]), SIZE)[0]
    assert load.load() == load.load()
    assert load.in_round(1).load().seed != load.in_round(2).load().seed


def test_starts_are_compared_start_by_start() -> None:
    starts = [Start(NEOX, 20.0), Start(OPENAI, 16.0), Start(OPENAI, 10.0), Start(NEOX, 30.0), Start(NEOX, 99.0)]
    comparison = Comparison([], starts)
    assert comparison.start_ratio(NEOX, OPENAI).low == pytest.approx(1.25)
    assert comparison.start_ratio(NEOX, OPENAI).high == pytest.approx(3.0)
    with pytest.raises(KeyError, match="not started"):
        comparison.first_token_s("another")


def test_memory_is_a_figure_of_a_run() -> None:
    comparison = Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)])
    assert comparison.median(NEOX, "64 streams", "resident_mib") == 512.0


def test_later_workloads_are_made_from_the_first_round_alone() -> None:
    asked: list[Comparison] = []

    def make(first_round: Comparison) -> list[Workload]:
        asked.append(first_round)
        return []

    assert not compare([], [], rounds=2, folder=Path(), view=View(), later=Later(make, frozenset({1}))).runs
    assert asked == []


def test_picture_is_drawn_from_the_result_file(tmp_path: Path) -> None:
    opened = [
        Run(each.system, load, each.summary, each.records, each.resident_mib)
        for each in (run(NEOX, 4.0), run(OPENAI, 8.0))
        for load in engine_comparison.open_loops(Comparison([run(NEOX, 4.0), run(OPENAI, 8.0)]), SIZE)
    ]
    comparison = Comparison([run(NEOX, 4.0), run(OPENAI, 8.0), *opened], [Start(NEOX, 20.0), Start(OPENAI, 16.0)])
    result = results.write(tmp_path, comparison, {}, 0.0, {})
    assert engine_plot.write(result).read_bytes().startswith(b"\x89PNG")
