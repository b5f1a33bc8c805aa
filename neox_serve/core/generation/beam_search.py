"""Beam search over a model that is asked for one token at a time.

A search is a value: `advance` takes what the model said about every beam and returns the next search. Scores and the handling of the end
of text are those of vLLM's `LLM.beam_search`: the length that divides a beam's log-probability counts the prompt and leaves out a closing
end-of-text token.

Source: vllm/entrypoints/generate/beam_search (0.32), after transformers' BeamHypotheses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neox_serve.core.types import Beam, Finish, FinishReason, PositionLogprobs, Stopping, TokenIds


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text the search has come to: its generated tokens, one entry of `logprobs` a token, and their summed log-probability."""

    token_ids: TokenIds = ()
    logprob: float = 0.0
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish: Finish | None = None

    def extended(self, position: PositionLogprobs, finish: Finish | None) -> "Hypothesis":
        """With one token more."""
        token = position.token
        return Hypothesis((*self.token_ids, token.token_id), self.logprob + token.logprob, (*self.logprobs, position), finish)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """One request's search. prompt_tokens: length of the prompt; active: beams to extend; completed: those that ended."""

    beam: Beam
    stopping: Stopping
    eos_token_id: int
    prompt_tokens: int
    active: tuple[Hypothesis, ...] = (Hypothesis(),)
    completed: tuple[Hypothesis, ...] = ()

    @property
    def candidates_per_beam(self) -> int:
        """How many of the most likely next tokens `advance` needs of each beam: with one end of text each, a beam's width is left."""
        return 2 * self.beam.width

    @property
    def done(self) -> bool:
        """Whether no beam can grow."""
        return not self.active or len(self.active[0].token_ids) >= self.stopping.max_tokens

    def advance(self, candidates: Sequence[Sequence[PositionLogprobs]]) -> "BeamSearch":
        """The search one token on. candidates: the likely next tokens of each active beam, in the order of `active`."""
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
        """The best texts so far, best first, `num_return` of them where there are so many."""
        cut = tuple(replace(beam, finish=Finish(FinishReason.LENGTH)) for beam in self.active if beam.token_ids)
        return tuple(sorted(self.completed + cut, key=self.score, reverse=True)[: self.beam.num_return])

    def score(self, beam: Hypothesis) -> float:
        """Log-probability over length to the power of the length penalty."""
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
