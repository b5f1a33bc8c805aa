"""What is asked. A workload describes its requests and makes them where they are sent from, so that none is carried between processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from neox_serve.core.types import TokenIds

Prompt = TokenIds | str
SMALLEST_VOCABULARY = 4_096
"""Ids below this stand for something in every GPT-NeoX vocabulary."""


@dataclass(frozen=True, slots=True)
class Request:
    """output_tokens: exactly as many. recorded_s: when a recording had it, from any start; None where it has no times."""

    prompt: Prompt
    output_tokens: int
    recorded_s: float | None = None


class Workload(Protocol):
    """Describes requests; cheap to pickle."""

    @property
    def name(self) -> str:
        """As tables print it."""

    def requests(self) -> Iterator[Request]:
        """All requests in order, the same ones each time."""


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Requests of fixed lengths. count: how many; None: without end.

    vocabulary_size: prompts are drawn from it, as seed, name and round say, so that no two rounds share a prefix that a cache could hold.
    """

    name: str
    count: int | None
    prompt_tokens: int = 128
    output_tokens: int = 64
    vocabulary_size: int = SMALLEST_VOCABULARY
    round: int = 0
    seed: int = 20_240_607

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.output_tokens) < 1 or (self.count is not None and self.count < 1):
            raise ValueError(f"{self}: needs a request, and a token each way")

    def in_round(self, number: int) -> "Synthetic":
        """The same with the prompts of another round."""
        return replace(self, round=number)

    def warm_up(self, count: int) -> "Synthetic":
        """A few short requests with prompts of their own, whose results are dropped."""
        return replace(self, name=f"{self.name} (warm-up)", count=count, output_tokens=min(16, self.output_tokens), round=-1)

    def requests(self) -> Iterator[Request]:
        """See the protocol."""
        rng, ids = Random(f"{self.seed}/{self.name}/{self.round}"), prompt_ids(self.vocabulary_size)
        made = 0
        while self.count is None or made < self.count:
            yield Request(tuple(rng.choices(ids, k=self.prompt_tokens)), self.output_tokens)
            made += 1


def prompt_ids(vocabulary_size: int) -> Sequence[int]:
    """Ids to draw prompts from: the first eighth, where special tokens and single bytes are, is left out."""
    return tuple(range(vocabulary_size // 8, vocabulary_size))
