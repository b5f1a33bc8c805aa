"""The computation of bits per byte, without a model."""

import math
import random

import pytest

from tools.builtin_model.evaluate import DocumentScore, sliding_windows, total_bits_per_byte, xz_bits_per_byte


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


def test_bits_per_byte_divides_bits_by_bytes() -> None:
    score = DocumentScore("m", size_bytes=10, tokens=4, nats=10 * math.log(2))
    assert score.bits_per_byte == pytest.approx(1.0)


def test_total_bits_per_byte_weighs_by_bytes() -> None:
    small, large = DocumentScore("a", 10, 1, 20 * math.log(2)), DocumentScore("b", 90, 1, 90 * math.log(2))
    assert total_bits_per_byte([small, large]) == pytest.approx(1.1)


def test_xz_bits_per_byte_noise_is_incompressible_and_repetition_is_not() -> None:
    assert xz_bits_per_byte(["".join(chr(33 + byte % 64) for byte in random.Random(0).randbytes(20_000))]) > 5.5
    assert xz_bits_per_byte(["same line\n" * 2000]) < 0.2
