"""Beam search over a model that generates one token at a time.

A search is an immutable value: `advance` takes the model's candidates for every beam and returns the next search. Scores and the handling
of the end of text are those of vLLM's `LLM.beam_search`: the length that divides a beam's log-probability includes the prompt and excludes
a final end-of-text token.

Source: vllm/entrypoints/generate/beam_search (0.32), after transformers' BeamHypotheses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neox_serve.core.types import Beam, Finish, FinishReason, PositionLogprobs, Stopping, TokenIds


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One beam: a sequence of generated tokens."""

    token_ids: TokenIds = ()
    logprob: float = 0.0
    """Sum of the log-probabilities of the tokens."""
    logprobs: tuple[PositionLogprobs, ...] = ()
    """One entry per token."""
    finish: Finish | None = None
    """None while the beam can grow."""

    def extended(self, position: PositionLogprobs, finish: Finish | None) -> "Hypothesis":
        """Returns the hypothesis with one more token."""
        token = position.token
        return Hypothesis((*self.token_ids, token.token_id), self.logprob + token.logprob, (*self.logprobs, position), finish)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """The search for one request."""

    beam: Beam
    stopping: Stopping
    eos_token_id: int
    prompt_tokens: int
    """Length of the prompt."""
    active: tuple[Hypothesis, ...] = (Hypothesis(),)
    """Beams that can still grow."""
    completed: tuple[Hypothesis, ...] = ()
    """Beams that have ended."""

    @property
    def candidates_per_beam(self) -> int:
        """Number of most likely next tokens that `advance` needs for each beam. Even if some of them end the text, `width` are left."""
        return 2 * self.beam.width

    @property
    def done(self) -> bool:
        """Whether no beam can grow any further."""
        return not self.active or len(self.active[0].token_ids) >= self.stopping.max_tokens

    def advance(self, candidates: Sequence[Sequence[PositionLogprobs]]) -> "BeamSearch":
        """Returns the search after one more token. candidates: the most likely next tokens of each beam in `active`."""
        grown = [
            beam.extended(position, self._finish(position.token.token_id))
            for beam, positions in zip(self.active, candidates, strict=True)
            for position in positions
            if self._may_follow(position.token.token_id, len(beam.token_ids))
        ]
        ended = tuple(beam for beam in grown if beam.finish)
        going = sorted((beam for beam in grown if not beam.finish), key=self.score, reverse=True)
        return replace(self, active=tuple(going[: self.beam.width]), completed=self.completed + ended)

    def best(self) -> tuple[Hypothesis, ...]:
        """Returns up to `num_return` hypotheses, best first. Beams that are still active end with LENGTH."""
        cut = tuple(replace(beam, finish=Finish(FinishReason.LENGTH)) for beam in self.active if beam.token_ids)
        return tuple(sorted(self.completed + cut, key=self.score, reverse=True)[: self.beam.num_return])

    def score(self, beam: Hypothesis) -> float:
        """Returns log-probability / length ** length_penalty."""
        ended_by_eos = beam.token_ids[-1:] == (self.eos_token_id,)
        length = self.prompt_tokens + len(beam.token_ids) - ended_by_eos
        return float(beam.logprob / max(length, 1) ** self.beam.length_penalty)

    def _may_follow(self, token_id: int, tokens: int) -> bool:
        return tokens >= self.stopping.min_tokens or not self._ends(token_id)

    def _ends(self, token_id: int) -> bool:
        return token_id in self.stopping.stop_token_ids or (token_id == self.eos_token_id and not self.stopping.ignore_eos)

    def _finish(self, token_id: int) -> Finish | None:
        if not self._ends(token_id):
            return None
        return Finish(FinishReason.STOP, token_id if token_id in self.stopping.stop_token_ids else None)
