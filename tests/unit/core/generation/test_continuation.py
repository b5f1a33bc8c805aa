"""Which streams another replica can continue, and with which request."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.generation.continuation import continued, is_continuable
from neox_serve.core.types import Beam, Choice, GenerationRequest, Sampling, Stopping

PLAIN = GenerationRequest("r", (1, 2), Stopping(10, min_tokens=4))


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(temperature=0.0, seed=7), Sampling(), Sampling(top_p=0.5, top_k=3, min_p=0.1)]
)
def test_plain_requests_are_continuable(sampling: Sampling) -> None:
    assert is_continuable(replace(PLAIN, sampling=sampling))


@pytest.mark.parametrize(
    "request_",
    [
        replace(PLAIN, sampling=Sampling(seed=7)),
        replace(PLAIN, sampling=Sampling(repetition_penalty=1.1)),
        replace(PLAIN, sampling=Sampling(presence_penalty=0.1)),
        replace(PLAIN, sampling=Sampling(frequency_penalty=-0.1)),
        replace(PLAIN, structured_output=Choice(("a", "b"))),
        replace(PLAIN, beam=Beam(2)),
        replace(PLAIN, n=2),
        replace(PLAIN, logprobs=0),
        replace(PLAIN, prompt_logprobs=0),
        replace(PLAIN, stopping=Stopping(10, stop_sequences=("x",))),
    ],
    ids=["seed", "repetition", "presence", "frequency", "structured_output", "beam", "n", "logprobs", "prompt logprobs", "stop sequence"],
)
def test_requests_with_state_beyond_their_tokens_are_not_continuable(request_: GenerationRequest) -> None:
    assert not is_continuable(request_)


@given(st.lists(st.integers(0, 99), max_size=12))
def test_continued_request_asks_for_exactly_the_missing_tokens(delivered: list[int]) -> None:
    rest = continued(PLAIN, delivered)
    if len(delivered) >= 10:
        assert rest is None
        return
    assert rest is not None
    assert rest.prompt_token_ids == (1, 2, *delivered)
    assert len(delivered) + rest.stopping.max_tokens == 10
    assert rest.stopping.min_tokens == max(0, 4 - len(delivered))
    assert replace(rest, prompt_token_ids=(1, 2), stopping=PLAIN.stopping) == PLAIN
