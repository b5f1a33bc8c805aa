"""Collects the deltas of a generation: everything for a unary response, only counts and finishes for a stream."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, Finish, FinishReason, PositionLogprobs, PromptFacts, SequenceDelta
from neox_serve.gateway.server.calls import TokenCount
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.public_messages import finish_message, logprob_messages

_DEADLINE_FINISH = Finish(FinishReason.DEADLINE)


@dataclass(slots=True)
class StreamProgress:
    """What the final event of a stream needs. Texts are not kept, because they have been sent."""

    sequences: int
    """Number of completions."""
    tokens: TokenCount
    """Tokens so far."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """Log-probabilities of the prompt; empty if not requested."""
    finishes: dict[int, Finish] = field(default_factory=dict)
    """How each finished completion ended, by index."""
    prompt_facts_received: bool = False
    """Whether the engine has reported the cached tokens of the prompt."""
    ended: bool = False
    """Whether the engine has ended the request."""

    def take(self, deltas: Iterable[Delta]) -> list[SequenceDelta]:
        """Records the deltas and returns their sequence deltas in order. Raises ServeError if a delta reports a failure."""
        sequences: list[SequenceDelta] = []
        for delta in deltas:
            if delta.prompt is not None:
                self._take_prompt(delta.prompt)
            for sequence in delta.sequences:
                self.tokens.completion += len(sequence.token_ids)
                if sequence.finish is not None:
                    self.finishes[sequence.index] = sequence.finish
            sequences.extend(delta.sequences)
            if delta.end:
                self._take_end(delta)
        return sequences

    def finish_messages(self) -> list[generation_pb2.Finish]:
        """Returns how each completion ended. Unfinished ones are reported as ended by the deadline."""
        return [finish_message(index, self.finishes.get(index, _DEADLINE_FINISH)) for index in range(self.sequences)]

    def _take_prompt(self, facts: PromptFacts) -> None:
        self.prompt_facts_received = True
        self.tokens.cached = facts.cached_tokens
        self.prompt_logprobs = facts.logprobs

    def _take_end(self, delta: Delta) -> None:
        if delta.failure is not None:
            raise delta.failure
        if len(self.finishes) != self.sequences:
            finished = f"{len(self.finishes)} of {self.sequences} completions finished"
            raise ServeError(Reason.INTERNAL, f"the engine ended the request with {finished}")
        self.ended = True


@dataclass(slots=True)
class _Completion:
    """The output of one completion so far."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    score: float | None = None

    def take(self, delta: SequenceDelta) -> None:
        """Adds a delta."""
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        if delta.score is not None:
            self.score = delta.score

    def message(self, finish: generation_pb2.Finish) -> generation_pb2.Completion:
        """Returns the public message."""
        return generation_pb2.Completion(
            index=finish.index,
            text="".join(self.texts),
            token_ids=self.token_ids,
            finish=finish,
            logprobs=logprob_messages(self.logprobs),
            score=self.score,
        )


class PromptCollector:
    """Collects the result of one prompt of a unary call."""

    def __init__(self, sequences: int) -> None:
        self.progress = StreamProgress(sequences, TokenCount())
        self._completions = [_Completion() for _ in range(sequences)]

    def take(self, deltas: Iterable[Delta]) -> bool:
        """Adds deltas and returns whether they contain tokens."""
        sequences = self.progress.take(deltas)
        for sequence in sequences:
            self._completions[sequence.index].take(sequence)
        return any(sequence.token_ids for sequence in sequences)

    def message(self) -> inference_service_pb2.PromptResult:
        """Returns the result of the prompt so far."""
        finishes = self.progress.finish_messages()
        return inference_service_pb2.PromptResult(
            completions=[completion.message(finish) for completion, finish in zip(self._completions, finishes, strict=True)],
            prompt_logprobs=logprob_messages(self.progress.prompt_logprobs),
            usage=self.progress.tokens.message(),
        )
