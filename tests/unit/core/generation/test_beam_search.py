"""Beam search: selection, scores, end of text, and equality with an exhaustive search if the beam is wide enough."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.generation.beam_search import BeamSearch, Hypothesis
from neox_serve.core.types import Beam, Finish, FinishReason, PositionLogprobs, Stopping, TokenLogprob

EOS = 0
STOPPED, CUT = Finish(FinishReason.STOP), Finish(FinishReason.LENGTH)


def position(token_id: int, logprob: float) -> PositionLogprobs:
    return PositionLogprobs(TokenLogprob(token_id, logprob, 1, ""))


def search(width: int, max_tokens: int, *, num_return: int = 1, length_penalty: float = 1.0, prompt_tokens: int = 0) -> BeamSearch:
    return BeamSearch(Beam(width, length_penalty, num_return), Stopping(max_tokens=max_tokens), EOS, prompt_tokens)


def run(state: BeamSearch, model: dict[int, float]) -> BeamSearch:
    """Runs a search with a model that gives the same candidates at every position."""
    while not state.done:
        state = state.advance([[position(token, logprob) for token, logprob in model.items()] for _ in state.active])
    return state


def test_advance_keeps_the_most_likely_beams() -> None:
    state = search(2, 2).advance([[position(1, -1.0), position(2, -2.0), position(3, -3.0)]])
    state = state.advance([[position(1, -5.0), position(2, -1.5)], [position(3, -0.1)]])
    assert [beam.token_ids for beam in state.active] == [(2, 3), (1, 2)]
    assert [beam.logprob for beam in state.active] == pytest.approx([-2.1, -2.5])
    assert state.done


def test_end_of_text_completes_a_beam_and_frees_its_place() -> None:
    state = search(1, 5).advance([[position(EOS, -0.1), position(7, -3.0)]])
    assert [beam.token_ids for beam in state.active] == [(7,)]
    assert [(beam.token_ids, beam.finish) for beam in state.best()] == [((EOS,), STOPPED)]


def test_search_with_all_beams_ended_is_done() -> None:
    assert search(2, 5).advance([[position(EOS, -0.1)]]).done


def test_best_at_the_length_limit_ranks_completed_and_truncated_beams_together() -> None:
    state = search(2, 1, num_return=2).advance([[position(EOS, -0.5), position(1, -0.2)]])
    assert [(beam.token_ids, beam.finish) for beam in state.best()] == [((1,), CUT), ((EOS,), STOPPED)]


@pytest.mark.parametrize(("length_penalty", "first"), [(0.0, (EOS,)), (2.0, (1, 1, 1))])
def test_length_penalty_above_one_prefers_long_texts(length_penalty: float, first: tuple[int, ...]) -> None:
    state = run(search(2, 3, length_penalty=length_penalty), {EOS: -1.0, 1: -0.5})
    assert state.best()[0].token_ids == first


def test_score_counts_the_prompt_but_not_the_final_end_of_text() -> None:
    state = search(1, 9, length_penalty=2.0, prompt_tokens=3)
    assert state.score(Hypothesis((1, 1), -8.0)) == pytest.approx(-8.0 / 25)
    assert state.score(Hypothesis((1, EOS), -8.0)) == pytest.approx(-8.0 / 16)


def test_end_of_text_with_min_tokens_or_ignore_eos_does_not_end_the_beam() -> None:
    early = BeamSearch(Beam(1), Stopping(max_tokens=3, min_tokens=2), EOS, 0).advance([[position(EOS, -0.1), position(1, -2.0)]])
    assert [beam.token_ids for beam in early.active] == [(1,)]
    assert not early.completed
    ignoring = BeamSearch(Beam(1), Stopping(max_tokens=3, ignore_eos=True), EOS, 0).advance([[position(EOS, -0.1)]])
    assert [beam.token_ids for beam in ignoring.active] == [(EOS,)]


def test_stop_token_ends_a_beam_and_is_reported() -> None:
    state = BeamSearch(Beam(1), Stopping(max_tokens=3, stop_token_ids=(5,)), EOS, 0).advance([[position(5, -0.1)]])
    assert state.best()[0].finish == Finish(FinishReason.STOP, 5)


@given(st.lists(st.floats(-5, -0.01), min_size=3, max_size=3), st.integers(1, 4), st.floats(0, 2))
def test_beam_as_wide_as_the_search_space_finds_the_best_text(logprobs: list[float], length: int, penalty: float) -> None:
    model = dict(enumerate(logprobs))
    found = run(search(81, length, length_penalty=penalty), model).best()[0]
    texts = [(*body, EOS) for n in range(length) for body in itertools.product((1, 2), repeat=n)]
    texts += list(itertools.product((1, 2), repeat=length))
    best = max(sum(model[t] for t in text) / max(len(text) - (text[-1] == EOS), 1) ** penalty for text in texts)
    score = found.logprob / max(len(found.token_ids) - (found.token_ids[-1] == EOS), 1) ** penalty
    assert math.isclose(score, best, rel_tol=1e-9)
    assert len(found.logprobs) == len(found.token_ids)
