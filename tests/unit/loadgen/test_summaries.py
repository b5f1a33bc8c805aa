"""Records and the figures computed from them."""

import pytest

from neox_serve.loadgen.records import Arrival, Record, record
from neox_serve.loadgen.summaries import Slo, percentile, summarize


def answered(start_s: float, *times_s: float, sent_s: float | None = None) -> Record:
    """Returns the record of a request with four tokens, one at each time."""
    arrivals = [Arrival(at_s, (number,)) for number, at_s in enumerate(times_s)]
    return record(4, arrivals, intended_s=start_s, sent_s=start_s if sent_s is None else sent_s, end_s=times_s[-1])


def lost(start_s: float, end_s: float, error: str = "UNAVAILABLE") -> Record:
    """Returns the record of a request that failed after three tokens."""
    return record(4, [Arrival(end_s, (1, 2, 3))], intended_s=start_s, sent_s=start_s, end_s=end_s, error=error)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, 10.0), (0.5, 25.0), (0.99, 39.7), (1.0, 40.0)],
)
def test_percentile_between_values_interpolates(fraction: float, expected: float) -> None:
    assert percentile([40.0, 10.0, 30.0, 20.0], fraction) == pytest.approx(expected)


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


def test_percentile_of_no_values_is_zero() -> None:
    assert percentile([], 0.5) == 0.0


def test_record_ignores_arrivals_without_tokens() -> None:
    arrivals = [Arrival(1.0, ()), Arrival(1.5, (7,)), Arrival(1.6, (8, 9)), Arrival(2.6, (10,)), Arrival(2.7, ())]
    one = record(3, arrivals, intended_s=1.0, sent_s=1.2, end_s=2.8)
    assert (one.token_ids, one.chunks) == ((7, 8, 9, 10), 3)
    assert one.late_s == pytest.approx(0.2)
    assert one.ttft_s == pytest.approx(0.5)
    assert one.e2e_s == pytest.approx(1.8)
    assert one.largest_gap_s == pytest.approx(1.0)
    assert one.tpot_s == pytest.approx((2.8 - 1.5) / 3)


def test_record_without_tokens_has_no_ttft() -> None:
    one = record(3, [], intended_s=1.0, sent_s=1.0, end_s=2.0, error="lost")
    assert (one.ttft_s, one.tpot_s, one.chunks, one.largest_gap_s) == (None, None, 0, 0.0)


def test_record_of_one_token_has_no_tpot() -> None:
    assert answered(0.0, 1.0).tpot_s is None


def test_summary_throughput_is_over_the_time_from_first_start_to_last_end() -> None:
    summary = summarize([answered(10.0, 10.5, 11.0), answered(10.0, 11.0, 12.0)], system_cpu_s=1.0, client_cpu_s=0.5)
    assert (summary.completed, summary.failed, summary.duration) == (2, 0, 2.0)
    assert (summary.total_input_tokens, summary.total_output_tokens) == (8, 4)
    assert (summary.request_throughput, summary.output_throughput, summary.total_token_throughput) == (1.0, 2.0, 6.0)
    assert (summary.ttft_ms.median, summary.tpot_ms.mean, summary.e2el_ms.median) == (750.0, 750.0, 1500.0)
    assert (summary.system_cpu_s_per_1k_tokens, summary.client_cpu_s_per_1k_tokens) == (250.0, 125.0)


def test_summary_figures_have_the_names_that_vllm_bench_serve_prints() -> None:
    figures = summarize([answered(0.0, 1.0, 2.0), answered(0.0, 3.0, 4.0)]).figures()
    assert (figures["mean_ttft_ms"], figures["median_ttft_ms"], figures["std_ttft_ms"]) == (2000.0, 2000.0, 1000.0)
    assert (figures["p90_ttft_ms"], figures["p99_ttft_ms"]) == (pytest.approx(2800.0), pytest.approx(2980.0))
    assert {"p99_tpot_ms", "p99_e2el_ms", "output_throughput", "total_token_throughput", "request_goodput"} <= figures.keys()


def test_summary_failed_requests_count_only_as_failed() -> None:
    summary = summarize([answered(0.0, 1.0, 2.0), lost(0.0, 4.0)])
    assert (summary.completed, summary.failed, summary.errors) == (1, 1, {"UNAVAILABLE": 1})
    assert (summary.total_output_tokens, summary.duration, summary.output_throughput) == (2, 4.0, 0.5)


def test_summary_lists_the_most_frequent_errors_first() -> None:
    summary = summarize([lost(0.0, 1.0, error) for error in ("a", "b", "b", "c", "d", "e", "f", "f")])
    assert list(summary.errors.items()) == [("b", 2), ("f", 2), ("a", 1), ("c", 1), ("d", 1)]


def test_summary_of_no_records_is_zero() -> None:
    summary = summarize([], open_loop=True, slo=Slo())
    assert (summary.completed, summary.output_throughput, summary.ttft_ms.p99, summary.chunks_per_response) == (0, 0.0, 0.0, 0.0)
    assert (summary.offered_request_rate, summary.request_goodput) == (0.0, 0.0)


def test_summary_offered_rate_includes_failed_requests() -> None:
    records = [answered(0.0, 1.0, 2.0), lost(1.0, 4.0), answered(2.0, 8.0)]
    assert summarize(records, open_loop=True).offered_request_rate == 1.0
    assert summarize(records).offered_request_rate is None


def test_summary_shows_how_late_requests_were_sent() -> None:
    late = summarize([answered(0.0, 2.0, sent_s=0.5), answered(1.0, 2.0)], open_loop=True).late_ms
    assert late.mean == 250.0
    assert late.p99 == pytest.approx(495.0)


@pytest.mark.parametrize(
    ("slo", "goodput"),
    [
        (None, None),
        (Slo(), 1.0),
        (Slo(ttft_ms=1000.0), 0.5),
        (Slo(tpot_ms=1000.0), 1.0),
        (Slo(tpot_ms=999.0), 0.5),
        (Slo(e2el_ms=2000.0), 1.0),
        (Slo(ttft_ms=2000.0, e2el_ms=1999.0), 0.0),
    ],
)
def test_summary_goodput_counts_requests_within_every_limit(slo: Slo | None, goodput: float | None) -> None:
    two_tokens, one_token = answered(0.0, 1.0, 2.0), answered(0.0, 2.0)
    assert summarize([two_tokens, one_token, lost(0.0, 1.0)], slo=slo).request_goodput == goodput
