"""What is asked of every system alike: the same prompts, as token ids, in the same order."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from neox_serve.loadgen.records import TokenIds


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop: `streams` callers, each asking anew when its answer is whole, `requests` in all. Lengths are fixed.

    vocabulary_size: prompts are drawn from it, as seed and round say, so that no two rounds share a prefix that a cache could hold.
    """

    name: str
    streams: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    vocabulary_size: int
    round: int = 0
    seed: int = 20_240_607

    def __post_init__(self) -> None:
        if min(self.streams, self.prompt_tokens, self.output_tokens) < 1 or self.requests < self.streams:
            raise ValueError(f"{self}: needs a stream, a token each way, and a request for each stream")

    def in_round(self, number: int) -> "Workload":
        """The same with the prompts of another round."""
        return replace(self, round=number)

    def warm_up(self) -> "Workload":
        """One short request a stream, with prompts of its own; its result is dropped."""
        return replace(self, name=f"{self.name} (warm-up)", requests=self.streams, output_tokens=min(16, self.output_tokens), round=-1)

    def prompts(self) -> Iterator[TokenIds]:
        """All prompts, in order."""
        rng = Random(f"{self.seed}/{self.name}/{self.round}")
        for _ in range(self.requests):
            yield tuple(rng.randrange(self.vocabulary_size // 8, self.vocabulary_size) for _ in range(self.prompt_tokens))
