"""Workloads that were recorded: the lengths, and for Mooncake's recordings the shared prefixes, of real traffic.

Only a file of one's own has the prompts themselves; for the others they are made up, the same ones each time.
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
    """A recording, or its first `count` requests. divisor: Mooncake's lengths and blocks are divided by it.

    Lengths are clipped so that input and output fit into max_model_len; prompts of a file of one's own are left as they are.
    """

    path: Path
    kind: TraceKind
    max_model_len: int
    vocabulary_size: int
    count: int | None = None
    divisor: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.divisor < 1 or MOONCAKE_BLOCK_TOKENS % self.divisor:
            raise ValueError(f"divisor {self.divisor}: must divide {MOONCAKE_BLOCK_TOKENS}")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len {self.max_model_len}: must hold a token each way")

    @property
    def name(self) -> str:
        """See the protocol."""
        return self.path.name

    def rows(self) -> Iterator[Row]:
        """The recorded requests, neither scaled nor clipped. Raises TraceError."""
        return islice(read_rows(self.path, self.kind), self.count)

    def requests(self) -> Iterator[Request]:
        """See the protocol. Raises TraceError."""
        made_up = self._made_up()
        for row in self.rows():
            if row.prompt is not None:
                yield Request(row.prompt, row.output_tokens, row.recorded_s)
            else:
                input_tokens, output_tokens = clip(*self.lengths(row), self.max_model_len)
                yield Request(made_up(row, input_tokens), output_tokens, row.recorded_s)

    def lengths(self, row: Row) -> tuple[int, int]:
        """Tokens in and out, scaled but not clipped; 0 in where the prompt is text."""
        divisor = self.divisor if self.kind is TraceKind.MOONCAKE else 1
        return -(-(row.input_tokens or 0) // divisor), -(-row.output_tokens // divisor)

    def _made_up(self) -> Callable[[Row, int], TokenIds]:
        """Makes prompts of a length: equal hash ids give equal tokens, and without hash ids nothing is shared."""
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
    """What a recording comes to. clipped: requests that did not fit into the context. timed: whether it says when requests came."""

    requests: int
    clipped: int
    timed: bool
    duration_s: float


def survey(recorded: Recorded) -> Survey:
    """Reads a recording to its end without making prompts. Raises TraceError, also where there is no request in it."""
    rows = list(recorded.rows())
    if not rows:
        raise TraceError(f"{recorded.path}: holds no request")
    clipped = sum(row.prompt is None and sum(recorded.lengths(row)) > recorded.max_model_len for row in rows)
    first_s, last_s = rows[0].recorded_s, rows[-1].recorded_s
    timed = first_s is not None and last_s is not None
    return Survey(len(rows), clipped, timed, (last_s or 0.0) - (first_s or 0.0))


def recorded_in(
    path: Path, *, max_model_len: int, vocabulary_size: int, count: int | None = None, divisor: int = 8, seed: int = 0
) -> Recorded:
    """The recording in a file, whose format is found out. Raises TraceError."""
    return Recorded(path.absolute(), kind_of(path), max_model_len, vocabulary_size, count, divisor, seed)


def clip(input_tokens: int, output_tokens: int, max_model_len: int) -> tuple[int, int]:
    """Lengths that fit. The output keeps its length up to half of the context, or to what a short input leaves; the input gets the rest."""
    if input_tokens + output_tokens <= max_model_len:
        return input_tokens, output_tokens
    output_tokens = min(output_tokens, max(max_model_len // 2, max_model_len - input_tokens))
    return min(input_tokens, max_model_len - output_tokens), output_tokens


def _drawn(rng: Random, ids: Sequence[int], tokens: int) -> TokenIds:
    return tuple(rng.choices(ids, k=tokens))
