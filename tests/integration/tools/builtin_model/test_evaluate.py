"""The computation of bits per byte, without a model."""

import math
import random

import pytest

from tools.builtin_model.evaluate import DocumentScore, total_bits_per_byte, xz_bits_per_byte


def test_bits_per_byte_divides_bits_by_bytes() -> None:
    score = DocumentScore("m", size_bytes=10, tokens=4, nats=10 * math.log(2))
    assert score.bits_per_byte == pytest.approx(1.0)


def test_total_bits_per_byte_weighs_by_bytes() -> None:
    small, large = DocumentScore("a", 10, 1, 20 * math.log(2)), DocumentScore("b", 90, 1, 90 * math.log(2))
    assert total_bits_per_byte([small, large]) == pytest.approx(1.1)


def test_xz_bits_per_byte_noise_is_incompressible_and_repetition_is_not() -> None:
    assert xz_bits_per_byte(["".join(chr(33 + byte % 64) for byte in random.Random(0).randbytes(20_000))]) > 5.5
    assert xz_bits_per_byte(["same line\n" * 2000]) < 0.2
