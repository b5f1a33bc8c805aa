"""Statistics over rounds and between systems."""

import pytest

from neox_serve.loadgen.records import Arrival, Record, record
from tests.bench.spreads import differences, identical_fraction, ratios, spread


def answered(*token_ids: int) -> Record:
    """Returns the record of a request with these tokens."""
    return record(4, [Arrival(1.0, token_ids)], intended_s=0.0, sent_s=0.0, end_s=2.0)


def test_ratios_within_rounds_cancel_drift() -> None:
    found = ratios([100.0, 50.0, 10.0], [50.0, 25.0, 4.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 2.0, 2.5, 3)


def test_differences_are_within_rounds() -> None:
    found = differences([5.0, 9.0], [2.0, 8.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)


def test_ratios_missing_round_is_rejected() -> None:
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])


def test_spread_without_rounds_is_rejected() -> None:
    with pytest.raises(ValueError, match="no round"):
        spread([])


def test_identical_fraction_compares_complete_responses() -> None:
    assert identical_fraction([answered(1, 2), answered(1, 2)], [answered(1, 2), answered(1, 9)]) == 0.5
