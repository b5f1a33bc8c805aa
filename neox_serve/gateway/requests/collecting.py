"""Gathers a generation's deltas: all of it for a unary answer, the bookkeeping alone for a stream."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, Finish, FinishReason, PositionLogprobs, PromptFacts, SequenceDelta
from neox_serve.gateway.server.calls import TokenCount
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.public_messages import finish_message, logprob_messages

_OUT_OF_TIME = Finish(FinishReason.DEADLINE)


@dataclass(slots=True)
class StreamProgress:
    """What a stream's final event needs. Texts are not kept: they have been sent."""

    sequences: int
    tokens: TokenCount
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    finishes: dict[int, Finish] = field(default_factory=dict)
    prompt_told: bool = False
    ended: bool = False

    def take(self, deltas: Iterable[Delta]) -> list[SequenceDelta]:
        """Notes what the deltas say and returns the sequences' news in them, in order."""
        news: list[SequenceDelta] = []
        for delta in deltas:
            if delta.prompt is not None:
                self._take_prompt(delta.prompt)
            for sequence in delta.sequences:
                self.tokens.completion += len(sequence.token_ids)
                if sequence.finish is not None:
                    self.finishes[sequence.index] = sequence.finish
            news.extend(delta.sequences)
            if delta.end:
                self._take_end(delta)
        return news

    def finish_messages(self) -> list[generation_pb2.Finish]:
        """How each completion ended; those that have not, ran out of time."""
        return [finish_message(index, self.finishes.get(index, _OUT_OF_TIME)) for index in range(self.sequences)]

    def _take_prompt(self, facts: PromptFacts) -> None:
        self.prompt_told = True
        self.tokens.cached = facts.cached_tokens
        self.prompt_logprobs = facts.logprobs

    def _take_end(self, delta: Delta) -> None:
        if delta.failure is not None:
            raise delta.failure
        if len(self.finishes) != self.sequences:
            raise ServeError(Reason.INTERNAL, f"the engine ended with {sorted(self.finishes)} of {self.sequences} completions finished")
        self.ended = True


@dataclass(slots=True)
class _Completion:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    score: float | None = None

    def take(self, news: SequenceDelta) -> None:
        self.texts.append(news.text)
        self.token_ids.extend(news.token_ids)
        self.logprobs.extend(news.logprobs)
        if news.score is not None:
            self.score = news.score

    def message(self, finish: generation_pb2.Finish) -> generation_pb2.Completion:
        return generation_pb2.Completion(
            index=finish.index,
            text="".join(self.texts),
            token_ids=self.token_ids,
            finish=finish,
            logprobs=logprob_messages(self.logprobs),
            score=self.score,
        )


class PromptCollector:
    """Everything that one prompt of a unary call brings."""

    def __init__(self, sequences: int) -> None:
        self.progress = StreamProgress(sequences, TokenCount())
        self._completions = [_Completion() for _ in range(sequences)]

    def take(self, deltas: Iterable[Delta]) -> bool:
        """Takes deltas; returns whether they brought tokens."""
        news = self.progress.take(deltas)
        for sequence in news:
            self._completions[sequence.index].take(sequence)
        return any(sequence.token_ids for sequence in news)

    def message(self) -> inference_service_pb2.PromptResult:
        """The prompt's result, as far as it has come."""
        finishes = self.progress.finish_messages()
        return inference_service_pb2.PromptResult(
            completions=[completion.message(finish) for completion, finish in zip(self._completions, finishes, strict=True)],
            prompt_logprobs=logprob_messages(self.progress.prompt_logprobs),
            usage=self.progress.tokens.message(),
        )
