"""The figures of the benches, on records made by hand."""

import pytest

from neox_serve.loadgen.records import Arrival, Record, record
from neox_serve.loadgen.summaries import differences, identical_fraction, percentile, ratios, spread, summarize


def answered(start_s: float, *times_s: float, end_s: float | None = None, prompt_tokens: int = 4) -> Record:
    """A request that got one token at each time."""
    arrivals = [Arrival(at_s, (number,)) for number, at_s in enumerate(times_s)]
    return record(prompt_tokens, start_s, arrivals, times_s[-1] if end_s is None else end_s)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, 10.0), (0.5, 25.0), (0.99, 39.7), (1.0, 40.0)],
)
def test_percentile_between_values_interpolates(fraction: float, expected: float) -> None:
    assert percentile([40.0, 10.0, 30.0, 20.0], fraction) == pytest.approx(expected)


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0.0


def test_record_arrivals_without_tokens_count_for_nothing() -> None:
    arrivals = [Arrival(1.0, ()), Arrival(1.5, (7,)), Arrival(1.6, (8, 9)), Arrival(2.6, (10,)), Arrival(2.7, ())]
    one = record(3, 1.0, arrivals, 2.8)
    assert (one.token_ids, one.chunks) == ((7, 8, 9, 10), 3)
    assert one.ttft_s == pytest.approx(0.5)
    assert one.e2e_s == pytest.approx(1.8)
    assert one.largest_gap_s == pytest.approx(1.0)
    assert one.tpot_s == pytest.approx((2.8 - 1.5) / 3)


def test_record_without_tokens_has_no_ttft() -> None:
    one = record(3, 1.0, [], 2.0, "lost")
    assert (one.ttft_s, one.tpot_s, one.chunks, one.largest_gap_s) == (None, None, 0, 0.0)


def test_record_of_one_token_has_no_tpot() -> None:
    assert answered(0.0, 1.0).tpot_s is None


def test_summary_throughput_is_over_the_time_from_first_start_to_last_end() -> None:
    summary = summarize([answered(10.0, 10.5, 11.0), answered(10.0, 11.0, 12.0)], streams=2, system_cpu_s=1.0, client_cpu_s=0.5)
    assert (summary.completed, summary.failed, summary.duration) == (2, 0, 2.0)
    assert (summary.total_input_tokens, summary.total_output_tokens) == (8, 4)
    assert (summary.request_throughput, summary.output_throughput) == (1.0, 2.0)
    assert (summary.median_ttft_ms, summary.mean_tpot_ms, summary.median_e2el_ms) == (750.0, 750.0, 1500.0)
    assert (summary.system_cpu_s_per_1k_tokens, summary.client_cpu_s_per_1k_tokens) == (250.0, 125.0)


def test_summary_failed_requests_count_as_failed_and_nowhere_else() -> None:
    lost = record(4, 0.0, [Arrival(1.0, (1, 2, 3))], 4.0, "UNAVAILABLE")
    summary = summarize([answered(0.0, 1.0, 2.0), lost], streams=1)
    assert (summary.completed, summary.failed, summary.errors) == (1, 1, ("UNAVAILABLE",))
    assert (summary.total_output_tokens, summary.duration, summary.output_throughput) == (2, 4.0, 0.5)


def test_summary_of_nothing_is_zeros() -> None:
    summary = summarize([], streams=1)
    assert (summary.completed, summary.output_throughput, summary.p99_ttft_ms, summary.chunks_per_response) == (0, 0.0, 0.0, 0.0)


def test_ratios_are_taken_within_rounds_so_that_drift_cancels() -> None:
    found = ratios([100.0, 50.0, 10.0], [50.0, 25.0, 4.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 2.0, 2.5, 3)


def test_differences_are_taken_within_rounds() -> None:
    found = differences([5.0, 9.0], [2.0, 8.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)


def test_ratios_with_a_round_missing_are_refused() -> None:
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])


def test_spread_of_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="no round"):
        spread([])


def test_identical_fraction_counts_whole_responses() -> None:
    same, other = answered(0.0, 1.0, 2.0), record(4, 0.0, [Arrival(1.0, (0, 9))], 2.0)
    assert identical_fraction([same, same], [same, other]) == 0.5
