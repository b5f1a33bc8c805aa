"""When the tokens of a stream are sent if the client asked for fewer and larger chunks. Pure: the time is an argument."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace

from neox_serve.core.types import Delta, SequenceDelta


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """When a chunk may be sent. Both conditions must hold, for each completion separately."""

    min_interval_s: float = 0.0
    """Minimum seconds since the previous chunk of the completion."""
    min_tokens: int = 1
    """Minimum tokens in the chunk."""

    @property
    def delays_chunks(self) -> bool:
        """Whether any chunk is ever held back."""
        return self.min_interval_s > 0 or self.min_tokens > 1


@dataclass(slots=True)
class _Completion:
    """The held deltas of one completion."""

    held: list[SequenceDelta] = field(default_factory=list)
    """Deltas that have not been sent."""
    tokens: int = 0
    """Tokens in them."""
    sent_at_s: float | None = None
    """When the last chunk was sent; None before the first."""

    def take(self, sequence: SequenceDelta) -> None:
        """Adds a delta."""
        self.held.append(sequence)
        self.tokens += len(sequence.token_ids)

    def due_at_s(self, policy: ChunkPolicy) -> float:
        """Returns when the held deltas are due; infinity if they wait for more."""
        if not self.held:
            return math.inf
        if self.sent_at_s is None or self.held[-1].finish is not None:
            return -math.inf
        return self.sent_at_s + policy.min_interval_s if self.tokens >= policy.min_tokens else math.inf

    def release(self, now_s: float) -> list[SequenceDelta]:
        """Returns all held deltas."""
        if self.tokens:
            self.sent_at_s = now_s
        released, self.held, self.tokens = self.held, [], 0
        return released


class Coalescer:
    """Holds the deltas of one generation until they are due. Prompt facts and the end are due at once."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self._policy = policy
        self._key: Hashable = None
        self._completions: defaultdict[int, _Completion] = defaultdict(_Completion)
        self._facts: list[Delta] = []

    def take(self, deltas: Iterable[Delta]) -> None:
        """Adds deltas."""
        for delta in deltas:
            self._key = delta.key
            for sequence in delta.sequences:
                self._completions[sequence.index].take(sequence)
            if delta.prompt is not None or delta.end:
                self._facts.append(replace(delta, sequences=()))

    @property
    def due_at_s(self) -> float:
        """When the next deltas are due if no more arrive; infinity if none are."""
        if self._facts:
            return -math.inf
        return min((completion.due_at_s(self._policy) for completion in self._completions.values()), default=math.inf)

    def release(self, now_s: float) -> list[Delta]:
        """Returns the deltas that are due at `now_s`, or all of them at infinity. Tokens come before the end."""
        released = [
            sequence
            for completion in self._completions.values()
            if completion.due_at_s(self._policy) <= now_s
            for sequence in completion.release(now_s)
        ]
        facts, self._facts = self._facts, []
        return [Delta(self._key, tuple(released)), *facts] if released else facts
