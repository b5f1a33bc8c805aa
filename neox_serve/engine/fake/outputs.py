"""What the fake engine answers: tokens, texts, log-probabilities and vectors that follow from the request alone."""

import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from neox_serve.core.types import (
    EmbeddingRequest,
    EmbeddingResult,
    Finish,
    FinishReason,
    GenerationRequest,
    PositionLogprobs,
    PromptFacts,
    SequenceDelta,
    TokenLogprob,
)
from neox_serve.engine.detokenizer import TextStream, TokenBytes

_CERTAIN_BIAS = 50.0
_SEQUENCE_SEED = 7919


def numbered(token_id: int) -> bytes:
    """A vocabulary of words: token 7 is "tok7 "."""
    return b"tok%d " % token_id


def _displayed(token_id: int) -> str:
    return numbered(token_id).decode()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the fake model speaks. dimensions: of its vectors. It ends a text only where a logit bias makes it."""

    size: int = 1000
    text_bytes: TokenBytes = numbered
    display: Callable[[int], str] = _displayed
    eos_token_id: int = 0
    dimensions: int = 32
    kv_capacity_tokens: int = 1_000_000

    def token(self, state: int) -> int:
        """The token that follows a text whose `state_after` this is; never the end of text."""
        token_id = state % self.size
        return token_id if token_id != self.eos_token_id else (token_id + 1) % self.size

    def logprobs(self, token_id: int, alternatives: int) -> PositionLogprobs:
        """A token as the most likely one, followed by its neighbours."""
        ranked = tuple(self._ranked((token_id + n) % self.size, n + 1) for n in range(max(1, alternatives)))
        return PositionLogprobs(ranked[0], ranked[:alternatives])

    def _ranked(self, token_id: int, rank: int) -> TokenLogprob:
        return TokenLogprob(token_id, -0.5 * rank, rank, self.display(token_id))


@dataclass(slots=True)
class _Sequence:
    index: int
    state: int
    stream: TextStream
    tokens: int = 0
    ended: bool = False


@dataclass(slots=True)
class FakeOutput:
    """All that one request will be told, a step at a time. forced: the token that a logit bias makes certain."""

    request: GenerationRequest
    vocabulary: Vocabulary
    sequences: list[_Sequence]
    forced: int | None
    held: list[SequenceDelta] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    def prompt(self, cached_tokens: int) -> PromptFacts:
        """The prompt's part of the first delta."""
        alternatives = self.request.prompt_logprobs
        if alternatives is None:
            return PromptFacts(cached_tokens)
        return PromptFacts(cached_tokens, tuple(self.vocabulary.logprobs(i, alternatives) for i in self.request.prompt_token_ids[1:]))

    def step(self) -> tuple[tuple[SequenceDelta, ...], bool]:
        """One token more for each sequence, and whether that ended the request. Beams are told of all at once, at the end."""
        news = tuple([self._extend(sequence) for sequence in self.sequences])
        if any(part.finish for part in news):
            self.sequences = [sequence for sequence in self.sequences if not sequence.ended]
        ended = not self.sequences
        if self.request.beam is None:
            return news, ended
        self.held.extend(news)
        return (self._beams() if ended else ()), ended

    def _extend(self, sequence: _Sequence) -> SequenceDelta:
        token_id, finish = self._next_token(sequence)
        sequence.tokens += 1
        sequence.state = state_after((token_id,), sequence.state)
        hidden = finish is not None and not self.request.stopping.include_stop_in_output
        piece = sequence.stream.push((token_id,), hide_last=hidden)
        if piece.stop is not None:
            finish = Finish(FinishReason.STOP, piece.stop)
        elif finish is None and sequence.tokens == self.request.stopping.max_tokens:
            finish = Finish(FinishReason.LENGTH)
        logprobs = () if self.request.logprobs is None else (self.vocabulary.logprobs(token_id, self.request.logprobs),)
        if finish is None:
            return SequenceDelta(sequence.index, piece.text, (token_id,), logprobs)
        sequence.ended = True
        return SequenceDelta(sequence.index, piece.text + sequence.stream.finish(), (token_id,), logprobs, finish)

    def _next_token(self, sequence: _Sequence) -> tuple[int, Finish | None]:
        """The token, and how it ends the sequence, if by itself. Nothing ends one before min_tokens."""
        stopping = self.request.stopping
        token_id = self.vocabulary.token(sequence.state) if self.forced is None else self.forced
        stops = token_id in stopping.stop_token_ids
        if not stops and (token_id != self.vocabulary.eos_token_id or stopping.ignore_eos):
            return token_id, None
        if sequence.tokens < stopping.min_tokens:
            return self.vocabulary.token(sequence.state), None
        return token_id, Finish(FinishReason.STOP, token_id if stops else None)

    def _beams(self) -> tuple[SequenceDelta, ...]:
        return tuple(self._beam(index) for index in sorted({part.index for part in self.held}))

    def _beam(self, index: int) -> SequenceDelta:
        parts = [part for part in self.held if part.index == index]
        return SequenceDelta(
            index,
            "".join(part.text for part in parts),
            tuple(token_id for part in parts for token_id in part.token_ids),
            tuple(logprobs for part in parts for logprobs in part.logprobs),
            parts[-1].finish,
            score=-0.5 * (index + 1),
        )


def state_after(token_ids: Sequence[int], state: int = 0) -> int:
    """What the next token follows from. As in a real model that is every token before it, wherever prompt ends and output begins."""
    return zlib.crc32(array("q", token_ids).tobytes(), state)


def _forced(request: GenerationRequest) -> int | None:
    """The token that a logit bias makes certain."""
    bias = request.sampling.logit_bias
    return max(bias, key=lambda token_id: bias[token_id]) if bias and max(bias.values()) >= _CERTAIN_BIAS else None


def output_of(request: GenerationRequest, vocabulary: Vocabulary) -> FakeOutput:
    """The answer to a request. Sequences of one request differ."""
    count = request.beam.num_return if request.beam else request.n
    seed = request.sampling.seed or 0
    streams = (TextStream(vocabulary.text_bytes, request.stopping, request.prompt_token_ids) for _ in range(count))
    states = (state_after(request.prompt_token_ids, seed + _SEQUENCE_SEED * index) for index in range(count))
    sequences = [_Sequence(index, state, stream) for index, (state, stream) in enumerate(zip(states, streams, strict=True))]
    return FakeOutput(request, vocabulary, sequences, _forced(request))


def embedding(request: EmbeddingRequest, vocabulary: Vocabulary) -> EmbeddingResult:
    """A vector that differs with the ids and the pooling."""
    seed = zlib.crc32(array("q", request.prompt_token_ids).tobytes() + request.pooling.encode())
    vector = np.random.default_rng(seed).standard_normal(vocabulary.dimensions)
    if request.normalize:
        vector /= np.linalg.norm(vector)
    return EmbeddingResult(vector.astype("<f4").tobytes())
