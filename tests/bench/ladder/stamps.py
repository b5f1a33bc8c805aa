"""Token lag: how much later than its engine emitted it a token is at the client. Both moments are CLOCK_MONOTONIC seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from neox_serve.loadgen.summaries import percentile


@dataclass(frozen=True, slots=True)
class Lag:
    """Lag over all tokens of a load."""

    tokens: int
    p50_s: float
    p99_s: float
    highest_s: float


def stamps_of(text: str, tokens: int) -> tuple[float, ...]:
    """The moments of a chunk's tokens. Raises ValueError where there is not one for each."""
    stamps = tuple(map(float, text.split()))
    if len(stamps) != tokens:
        raise ValueError(f"{len(stamps)} stamps for {tokens} tokens: {text[:80]!r}")
    return stamps


def lags(at_s: float, text: str, tokens: int) -> list[float]:
    """The lag of each token of a chunk that arrived at this moment. Raises ValueError as `stamps_of` does."""
    return [at_s - stamp_s for stamp_s in stamps_of(text, tokens)]


def lag(lags_s: Sequence[float]) -> Lag:
    """Its figures; zeros of nothing."""
    return Lag(len(lags_s), percentile(lags_s, 0.5), percentile(lags_s, 0.99), max(lags_s, default=0.0))
