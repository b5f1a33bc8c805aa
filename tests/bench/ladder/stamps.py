"""Token lag: the time from the emission of a token in the engine until its arrival at the client, both in CLOCK_MONOTONIC seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from neox_serve.loadgen.summaries import percentile


@dataclass(frozen=True, slots=True)
class Lag:
    """The distribution of the lag over all tokens of a load."""

    tokens: int
    """Number of tokens."""
    p50_s: float
    """Median, in seconds."""
    p99_s: float
    """99th percentile, in seconds."""
    highest_s: float
    """Maximum, in seconds."""


def stamps_of(text: str, tokens: int) -> tuple[float, ...]:
    """Returns the timestamps of a chunk's tokens. Raises ValueError if there is not exactly one for each token."""
    stamps = tuple(map(float, text.split()))
    if len(stamps) != tokens:
        raise ValueError(f"{len(stamps)} timestamps for {tokens} tokens: {text[:80]!r}")
    return stamps


def lags(at_s: float, text: str, tokens: int) -> list[float]:
    """Returns the lag of each token of a chunk that arrived at `at_s`. Raises ValueError as `stamps_of` does."""
    return [at_s - stamp_s for stamp_s in stamps_of(text, tokens)]


def lag(lags_s: Sequence[float]) -> Lag:
    """Returns the distribution of the lags, with zeros if there are none."""
    return Lag(len(lags_s), percentile(lags_s, 0.5), percentile(lags_s, 0.99), max(lags_s, default=0.0))
