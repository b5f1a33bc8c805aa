"""An engine in simulated time: continuous batching with chunked prefill over a prefix cache."""

from collections import deque
from dataclasses import dataclass

from autoscaling.simulator.prefix_cache import Allocation, CacheChanges, PrefixCache


@dataclass(frozen=True, slots=True)
class Speed:
    """How long a step takes.

    Source of the defaults: FasterTransformer's latencies of a 20B GPT on one A100 (docs/gpt_guide.md). With one sequence of 60 input
    tokens, 12 more output tokens take 0.028 s each. With 128 sequences of 128 input tokens: 0.22 ms per input token, and per sequence and
    step.
    """

    step_s: float = 0.028
    """Fixed time of a step."""
    prompt_token_s: float = 0.00022
    """Additional time per prompt token computed."""
    sequence_s: float = 0.00022
    """Additional time per sequence decoded."""
    step_tokens: int = 2048
    """Maximum number of tokens per step."""

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prefill rate, in tokens per second, of steps full of prompt tokens."""
        return self.step_tokens / (self.step_s + self.prompt_token_s * self.step_tokens)


@dataclass(slots=True, eq=False)
class Work:
    """A request. blocks: names of the prompt blocks that a cache can serve. first_token_s: time of the first token, None before it."""

    came_s: float
    blocks: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    written_tokens: int = 0
    first_token_s: float | None = None
    allocation: Allocation | None = None

    @property
    def uncomputed_tokens(self) -> int:
        """Number of prompt tokens."""
        return self.prompt_tokens - self.cached_tokens - self.computed_tokens

    @property
    def ended(self) -> bool:
        """Whether all output was generated."""
        return self.written_tokens >= self.output_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step, at its end."""

    ends_s: float
    ended: list[Work]
    news: CacheChanges


class SimulatedEngine:
    """An engine that processes its requests step by step."""

    def __init__(self, speed: Speed, capacity_blocks: int, block_tokens: int) -> None:
        self._speed = speed
        self._block_tokens = block_tokens
        self._cache = PrefixCache(capacity_blocks)
        self._waiting: deque[Work] = deque()
        self._running: list[Work] = []
        self.computed_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether it has no requests."""
        return not self._waiting and not self._running

    def submit(self, work: Work) -> None:
        """Adds a request."""
        self._waiting.append(work)

    def step(self, now_s: float) -> Step:
        """Runs one step from now: a token for each decoding sequence, then prompt tokens up to the step's budget."""
        self._start()
        decoding = [work for work in self._running if not work.uncomputed_tokens]
        parts = self._prompt_parts(self._speed.step_tokens - len(decoding))
        prompt_tokens = sum(part for _, part in parts)
        took_s = self._speed.step_s + self._speed.prompt_token_s * prompt_tokens + self._speed.sequence_s * len(decoding)
        self.computed_tokens += prompt_tokens + len(decoding)
        for work in decoding:
            work.written_tokens += 1
        for work, part in parts:
            self._compute(work, part, now_s + took_s)
        return Step(now_s + took_s, self._take_ended(), self._cache.take_changes())

    def _start(self) -> None:
        """Starts waiting requests in order while the cache has room for all their tokens."""
        while self._waiting:
            work = self._waiting[0]
            held = work.blocks[: self._cache.cached_blocks(work.blocks)]
            tokens = work.prompt_tokens + work.output_tokens
            work.allocation = self._cache.allocate(held, -(-tokens // self._block_tokens) - len(held))
            if work.allocation is None:
                return
            work.cached_tokens = len(held) * self._block_tokens
            self._running.append(self._waiting.popleft())

    def _prompt_parts(self, budget_tokens: int) -> list[tuple[Work, int]]:
        parts = []
        for work in self._running:
            if part := min(work.uncomputed_tokens, budget_tokens):
                parts.append((work, part))
                budget_tokens -= part
        return parts

    def _compute(self, work: Work, tokens: int, ends_s: float) -> None:
        work.computed_tokens += tokens
        if not work.uncomputed_tokens and work.allocation is not None:
            self._cache.share(work.allocation, work.blocks[work.cached_tokens // self._block_tokens :])
            work.first_token_s, work.written_tokens = ends_s, 1

    def _take_ended(self) -> list[Work]:
        ended = [work for work in self._running if work.ended]
        self._running = [work for work in self._running if not work.ended]
        for work in ended:
            if work.allocation is not None:
                self._cache.release(work.allocation)
        return ended
