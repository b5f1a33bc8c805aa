"""Sliding windows over long texts."""

import pytest

from neox_serve.model.windows import sliding_windows


@pytest.mark.parametrize("length", [2, 7, 8, 9, 12, 13, 100])
def test_sliding_windows_score_each_token_except_the_first_once(length: int) -> None:
    scored = [index for window in sliding_windows(length, 8, 4) for index in range(window.scored_from, window.end)]
    assert scored == list(range(1, length))


def test_sliding_windows_fit_the_context_and_keep_at_least_the_stride_as_context() -> None:
    for window in list(sliding_windows(100, 8, 4)):
        assert window.end - window.start <= 8
        assert window.start == 0 or window.scored_from - window.start >= 4


def test_sliding_windows_single_token_has_no_windows() -> None:
    assert list(sliding_windows(1, 8, 4)) == []
