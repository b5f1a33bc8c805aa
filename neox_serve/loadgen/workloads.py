"""Workloads: the requests of a load. A workload creates its requests in the sending process, so none is sent between processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from neox_serve.core.types import TokenIds

Prompt = TokenIds | str
"""Token ids, or text."""
SMALLEST_VOCABULARY = 4_096
"""Token ids below this number exist in every GPT-NeoX vocabulary."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    prompt: Prompt
    output_tokens: int
    """Exact number of tokens to generate."""
    recorded_s: float | None = None
    """Time in the recording, relative to any start; None if it has no times."""


class Workload(Protocol):
    """Describes requests. It is cheap to pickle."""

    @property
    def name(self) -> str:
        """Name for tables."""

    def requests(self) -> Iterator[Request]:
        """Yields all requests in order, the same ones each time."""


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Requests of fixed lengths with random prompts."""

    name: str
    count: int | None
    """Number of requests; None: no end."""
    prompt_tokens: int = 128
    output_tokens: int = 64
    vocabulary_size: int = SMALLEST_VOCABULARY
    """Prompts are drawn from this vocabulary."""
    round: int = 0
    """Seed, name and round determine the prompts, so that no two rounds share a prefix that a cache could hold."""
    seed: int = 20_240_607

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.output_tokens) < 1 or (self.count is not None and self.count < 1):
            raise ValueError(f"{self}: count, prompt_tokens and output_tokens must be at least 1")

    def in_round(self, number: int) -> "Synthetic":
        """Returns the same workload with the prompts of another round."""
        return replace(self, round=number)

    def warm_up(self, count: int) -> "Synthetic":
        """Returns a workload of a few short requests with prompts of their own, whose results are not used."""
        return replace(self, name=f"{self.name} (warm-up)", count=count, output_tokens=min(16, self.output_tokens), round=-1)

    def requests(self) -> Iterator[Request]:
        """See the protocol."""
        rng, ids = Random(f"{self.seed}/{self.name}/{self.round}"), prompt_ids(self.vocabulary_size)
        made = 0
        while self.count is None or made < self.count:
            yield Request(tuple(rng.choices(ids, k=self.prompt_tokens)), self.output_tokens)
            made += 1


def prompt_ids(vocabulary_size: int) -> Sequence[int]:
    """Returns the token ids to draw prompts from. The first eighth, with special tokens and single bytes, is excluded."""
    return tuple(range(vocabulary_size // 8, vocabulary_size))
