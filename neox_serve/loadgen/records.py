"""What is known of one request after it has ended: when it was meant to start, what came, and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from neox_serve.core.types import TokenIds


@dataclass(frozen=True, slots=True)
class Arrival:
    """Tokens that came together. at_s: CLOCK_MONOTONIC."""

    at_s: float
    token_ids: TokenIds


@dataclass(frozen=True, slots=True)
class Response:
    """All that came. prompt_tokens: as the system counted them; None where it did not say."""

    arrivals: Sequence[Arrival] = ()
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One request. All times are CLOCK_MONOTONIC seconds; first_token_s: None where no token came; error: None where it ended well."""

    prompt_tokens: int
    intended_s: float
    sent_s: float
    first_token_s: float | None
    end_s: float
    token_ids: TokenIds
    chunks: int
    largest_gap_s: float
    error: str | None = None

    @property
    def late_s(self) -> float:
        """From the intended start to the real one: what the generator itself, or its cap on requests in flight, made it wait."""
        return self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token, from the intended start."""
        return None if self.first_token_s is None else self.first_token_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        """Time to the end, from the intended start."""
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (n - 1)."""
        if self.first_token_s is None or len(self.token_ids) < 2:
            return None
        return (self.end_s - self.first_token_s) / (len(self.token_ids) - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run. records: in the order of the requests. unfinished: requests that an interrupt cut off; they have no record."""

    records: list[Record]
    unfinished: int = 0


def record(
    prompt_tokens: int, arrivals: Sequence[Arrival], *, intended_s: float, sent_s: float, end_s: float, error: str | None = None
) -> Record:
    """A request's record from all that arrived; arrivals without tokens count for nothing."""
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
