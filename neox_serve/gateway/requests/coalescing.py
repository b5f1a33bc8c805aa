"""When the tokens of a stream leave, where the client has asked for fewer, larger chunks. Pure: the clock is an argument."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace

from neox_serve.core.types import Delta, SequenceDelta


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """What a chunk waits for, all of it: seconds since the chunk before of its completion, and tokens in it."""

    min_interval_s: float = 0.0
    min_tokens: int = 1

    @property
    def delays_chunks(self) -> bool:
        """Whether a chunk ever waits."""
        return self.min_interval_s > 0 or self.min_tokens > 1


@dataclass(slots=True)
class _Completion:
    """What waits of one completion, and when its last chunk left."""

    waiting: list[SequenceDelta] = field(default_factory=list)
    tokens: int = 0
    left_at_s: float | None = None

    def take(self, sequence: SequenceDelta) -> None:
        self.waiting.append(sequence)
        self.tokens += len(sequence.token_ids)

    def due_at_s(self, policy: ChunkPolicy) -> float:
        """When what waits leaves; infinity: not before there is more."""
        if not self.waiting:
            return math.inf
        if self.left_at_s is None or self.waiting[-1].finish is not None:
            return -math.inf
        return self.left_at_s + policy.min_interval_s if self.tokens >= policy.min_tokens else math.inf

    def leave(self, now_s: float) -> list[SequenceDelta]:
        if self.tokens:
            self.left_at_s = now_s
        leaving, self.waiting, self.tokens = self.waiting, [], 0
        return leaving


class Coalescer:
    """Holds one generation's news until they are due. What is no token (facts of the prompt, the end) is due at once."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self._policy = policy
        self._key: Hashable = None
        self._completions: defaultdict[int, _Completion] = defaultdict(_Completion)
        self._facts: list[Delta] = []

    def take(self, deltas: Iterable[Delta]) -> None:
        """Adds deltas to what waits."""
        for delta in deltas:
            self._key = delta.key
            for sequence in delta.sequences:
                self._completions[sequence.index].take(sequence)
            if delta.prompt is not None or delta.end:
                self._facts.append(replace(delta, sequences=()))

    @property
    def due_at_s(self) -> float:
        """When something leaves next, if nothing more comes; infinity: never."""
        if self._facts:
            return -math.inf
        return min((completion.due_at_s(self._policy) for completion in self._completions.values()), default=math.inf)

    def release(self, now_s: float) -> list[Delta]:
        """What is due; at infinity, all that waits. Tokens come before an end."""
        leaving = [
            sequence
            for completion in self._completions.values()
            if completion.due_at_s(self._policy) <= now_s
            for sequence in completion.leave(now_s)
        ]
        facts, self._facts = self._facts, []
        return [Delta(self._key, tuple(leaving)), *facts] if leaving else facts
