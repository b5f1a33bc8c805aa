"""The outputs of the fake engine: tokens, texts, log-probabilities and vectors that depend only on the request."""

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
"""Logit bias from which on a token is certain."""
_SEQUENCE_SEED = 7919
"""Difference between the seeds of two sequences of one request."""


def numbered(token_id: int) -> bytes:
    """Returns the text of a token in a vocabulary of numbered words: token 7 is "tok7 "."""
    return b"tok%d " % token_id


def _displayed(token_id: int) -> str:
    return numbered(token_id).decode()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the fake model, and its dimensions. It generates the end-of-text token only if a logit bias makes it certain."""

    size: int = 1000
    """Number of tokens."""
    text_bytes: TokenBytes = numbered
    display: Callable[[int], str] = _displayed
    """Returns the text of a single token."""
    eos_token_id: int = 0
    dimensions: int = 32
    """Dimensions of embeddings."""
    kv_capacity_tokens: int = 1_000_000
    """Capacity of the KV cache that load reports refer to."""

    def token(self, state: int) -> int:
        """Returns the token that follows a text with this `state_after`. It is never the end-of-text token."""
        token_id = state % self.size
        return token_id if token_id != self.eos_token_id else (token_id + 1) % self.size

    def logprobs(self, token_id: int, alternatives: int) -> PositionLogprobs:
        """Returns a token as the most likely one, with the following ids as less likely alternatives."""
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
    """The output of one request, generated step by step."""

    request: GenerationRequest
    vocabulary: Vocabulary
    sequences: list[_Sequence]
    """Sequences that have not ended."""
    forced: int | None
    """Token that a logit bias makes certain."""
    held: list[SequenceDelta] = field(default_factory=list)
    """Outputs of a beam search, which are sent together at its end."""

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.request.prompt_token_ids)

    def prompt(self, cached_tokens: int) -> PromptFacts:
        """Returns the prompt's facts, which the first delta carries."""
        alternatives = self.request.prompt_logprobs
        if alternatives is None:
            return PromptFacts(cached_tokens)
        return PromptFacts(cached_tokens, tuple(self.vocabulary.logprobs(i, alternatives) for i in self.request.prompt_token_ids[1:]))

    def step(self) -> tuple[tuple[SequenceDelta, ...], bool]:
        """Generates one token for each sequence. Returns the deltas, and whether the request has ended.

        A beam search returns all its deltas at the end.
        """
        deltas = tuple([self._extend(sequence) for sequence in self.sequences])
        if any(part.finish for part in deltas):
            self.sequences = [sequence for sequence in self.sequences if not sequence.ended]
        ended = not self.sequences
        if self.request.beam is None:
            return deltas, ended
        self.held.extend(deltas)
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
        """Returns the next token, and how it ends the sequence if it does. No token ends a sequence before min_tokens."""
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
    """Returns the state that determines the next token. As in a real model it depends on all tokens before it, prompt and output."""
    return zlib.crc32(array("q", token_ids).tobytes(), state)


def _forced(request: GenerationRequest) -> int | None:
    """Returns the token that a logit bias makes certain; None if there is none."""
    bias = request.sampling.logit_bias
    return max(bias, key=lambda token_id: bias[token_id]) if bias and max(bias.values()) >= _CERTAIN_BIAS else None


def output_of(request: GenerationRequest, vocabulary: Vocabulary) -> FakeOutput:
    """Returns the output of a request. The sequences of one request differ."""
    count = request.beam.num_return if request.beam else request.n
    seed = request.sampling.seed or 0
    streams = (TextStream(vocabulary.text_bytes, request.stopping, request.prompt_token_ids) for _ in range(count))
    states = (state_after(request.prompt_token_ids, seed + _SEQUENCE_SEED * index) for index in range(count))
    sequences = [_Sequence(index, state, stream) for index, (state, stream) in enumerate(zip(states, streams, strict=True))]
    return FakeOutput(request, vocabulary, sequences, _forced(request))


def embedding(request: EmbeddingRequest, vocabulary: Vocabulary) -> EmbeddingResult:
    """Returns a vector that depends on token ids and pooling."""
    seed = zlib.crc32(array("q", request.prompt_token_ids).tobytes() + request.pooling.encode())
    vector = np.random.default_rng(seed).standard_normal(vocabulary.dimensions)
    if request.normalize:
        vector /= np.linalg.norm(vector)
    return EmbeddingResult(vector.astype("<f4").tobytes())
