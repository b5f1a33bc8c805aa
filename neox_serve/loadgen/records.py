"""Records of requests that have ended: when each was meant to start, what arrived, and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from neox_serve.core.types import TokenIds


@dataclass(frozen=True, slots=True)
class Arrival:
    """Tokens that arrived together."""

    at_s: float
    """CLOCK_MONOTONIC."""
    token_ids: TokenIds


@dataclass(frozen=True, slots=True)
class Response:
    """A decoded response."""

    arrivals: Sequence[Arrival] = ()
    prompt_tokens: int | None = None
    """Prompt tokens as counted by the system; None if it did not report them."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. All times are CLOCK_MONOTONIC seconds."""

    prompt_tokens: int
    intended_s: float
    """When the request was meant to start."""
    sent_s: float
    """When it was sent."""
    first_token_s: float | None
    """None if no token arrived."""
    end_s: float
    token_ids: TokenIds
    chunks: int
    """Number of arrivals with tokens."""
    largest_gap_s: float
    """Longest time between two arrivals."""
    error: str | None = None
    """None if the request succeeded."""

    @property
    def late_s(self) -> float:
        """Delay of the start, caused by the generator itself or by its limit on requests in flight."""
        return self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token from the intended start; None if no token arrived."""
        return None if self.first_token_s is None else self.first_token_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        """End-to-end latency from the intended start."""
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (n - 1); None for fewer than two tokens."""
        if self.first_token_s is None or len(self.token_ids) < 2:
            return None
        return (self.end_s - self.first_token_s) / (len(self.token_ids) - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run."""

    records: list[Record]
    """In the order of the requests."""
    unfinished: int = 0
    """Requests that an interrupt cut off; they have no record."""


def record(
    prompt_tokens: int, arrivals: Sequence[Arrival], *, intended_s: float, sent_s: float, end_s: float, error: str | None = None
) -> Record:
    """Builds the record of a request. Arrivals without tokens are ignored."""
    times_s = [arrival.at_s for arrival in arrivals if arrival.token_ids]
    return Record(
        prompt_tokens=prompt_tokens,
        intended_s=intended_s,
        sent_s=sent_s,
        first_token_s=times_s[0] if times_s else None,
        end_s=end_s,
        token_ids=tuple(token_id for arrival in arrivals for token_id in arrival.token_ids),
        chunks=len(times_s),
        largest_gap_s=max((later - earlier for earlier, later in pairwise(times_s)), default=0.0),
        error=error,
    )
