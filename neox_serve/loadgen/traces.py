"""Workloads from recordings: the lengths of real traffic and, for Mooncake's recordings, its shared prefixes.

Only our own format contains the prompts. For the other formats prompts are generated, the same ones in each run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

from neox_serve.core.types import TokenIds
from neox_serve.loadgen.trace_files import MOONCAKE_BLOCK_TOKENS, Row, TraceError, TraceKind, kind_of, read_rows
from neox_serve.loadgen.workloads import Request, prompt_ids


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording as a workload.

    Lengths are clipped so that input and output fit into the context. Recorded prompts are not changed.
    """

    path: Path
    kind: TraceKind
    max_model_len: int
    """Context length of the target."""
    vocabulary_size: int
    count: int | None = None
    """Use only this many requests from the start; None uses all."""
    divisor: int = 8
    """Mooncake's lengths and blocks are divided by this number."""
    seed: int = 0
    """Seed of the generated prompts."""

    def __post_init__(self) -> None:
        if self.divisor < 1 or MOONCAKE_BLOCK_TOKENS % self.divisor:
            raise ValueError(f"divisor {self.divisor}: must divide {MOONCAKE_BLOCK_TOKENS}")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len {self.max_model_len}: must be at least 2, for one input and one output token")

    @property
    def name(self) -> str:
        """See the protocol."""
        return self.path.name

    def rows(self) -> Iterator[Row]:
        """Yields the recorded requests, neither scaled nor clipped. Raises TraceError."""
        return islice(read_rows(self.path, self.kind), self.count)

    def requests(self) -> Iterator[Request]:
        """See the protocol. Raises TraceError."""
        generated = self._generated()
        for row in self.rows():
            if row.prompt is not None:
                yield Request(row.prompt, row.output_tokens, row.recorded_s)
            else:
                input_tokens, output_tokens = clip(*self.lengths(row), self.max_model_len)
                yield Request(generated(row, input_tokens), output_tokens, row.recorded_s)

    def lengths(self, row: Row) -> tuple[int, int]:
        """Returns the input and output tokens, scaled but not clipped. The input is 0 if the prompt is text."""
        divisor = self.divisor if self.kind is TraceKind.MOONCAKE else 1
        return -(-(row.input_tokens or 0) // divisor), -(-row.output_tokens // divisor)

    def _generated(self) -> Callable[[Row, int], TokenIds]:
        """Returns a function that generates prompts. Equal hash ids give equal tokens; without hash ids prompts share nothing."""
        ids, rng, block_tokens = prompt_ids(self.vocabulary_size), Random(self.seed), MOONCAKE_BLOCK_TOKENS // self.divisor

        @cache
        def block(hash_id: int) -> TokenIds:
            return _drawn(Random(f"{self.seed}/{hash_id}"), ids, block_tokens)

        def prompt(row: Row, tokens: int) -> TokenIds:
            if not row.hash_ids:
                return _drawn(rng, ids, tokens)
            blocks = row.hash_ids[: -(-tokens // block_tokens)]
            return tuple(token_id for hash_id in blocks for token_id in block(hash_id))[:tokens]

        return prompt


@dataclass(frozen=True, slots=True)
class Survey:
    """What a recording contains."""

    requests: int
    clipped: int
    """Requests that do not fit into the context."""
    timed: bool
    """Whether the requests have times."""
    duration_s: float
    """Time from the first to the last request."""


def survey(recorded: Recorded) -> Survey:
    """Reads a whole recording without generating prompts. Raises TraceError, also if it contains no request."""
    rows = list(recorded.rows())
    if not rows:
        raise TraceError(f"{recorded.path}: contains no request")
    clipped = sum(row.prompt is None and sum(recorded.lengths(row)) > recorded.max_model_len for row in rows)
    first_s, last_s = rows[0].recorded_s, rows[-1].recorded_s
    timed = first_s is not None and last_s is not None
    return Survey(len(rows), clipped, timed, (last_s or 0.0) - (first_s or 0.0))


def recorded_in(
    path: Path, *, max_model_len: int, vocabulary_size: int, count: int | None = None, divisor: int = 8, seed: int = 0
) -> Recorded:
    """Opens the recording in a file and detects its format. Raises TraceError."""
    return Recorded(path.absolute(), kind_of(path), max_model_len, vocabulary_size, count, divisor, seed)


def clip(input_tokens: int, output_tokens: int, max_model_len: int) -> tuple[int, int]:
    """Returns lengths that fit into the context.

    The output keeps up to half of the context, or more if the input is short. The input gets the rest.
    """
    if input_tokens + output_tokens <= max_model_len:
        return input_tokens, output_tokens
    output_tokens = min(output_tokens, max(max_model_len // 2, max_model_len - input_tokens))
    return min(input_tokens, max_model_len - output_tokens), output_tokens


def _drawn(rng: Random, ids: Sequence[int], tokens: int) -> TokenIds:
    return tuple(rng.choices(ids, k=tokens))
