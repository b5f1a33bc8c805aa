"""What vLLM is asked for, field by field: two parameters swapped would pass every test of what comes out."""

import pytest

from neox_serve.core.types import GenerationRequest, Sampling, Stopping

pytestmark = pytest.mark.e2e

SAMPLING = Sampling(
    temperature=0.7,
    top_p=0.9,
    top_k=11,
    min_p=0.05,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=-0.2,
    seed=40,
    logit_bias={5: 2.0},
)
STOPPING = Stopping(max_tokens=9, min_tokens=3, stop_token_ids=(8,), ignore_eos=True)
REQUEST = GenerationRequest("r", (1, 2), STOPPING, SAMPLING, n=3, logprobs=4, prompt_logprobs=2)


def test_sampling_params_carry_every_field() -> None:
    from neox_serve.engine.vllm_requests import sampling_params

    params = sampling_params(REQUEST, 0)
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"):
        assert getattr(params, name) == getattr(SAMPLING, name), name
    assert params.logit_bias == {5: 2.0}
    assert (params.max_tokens, params.min_tokens, params.stop_token_ids, params.ignore_eos) == (9, 3, [8], True)
    assert (params.n, params.logprobs, params.prompt_logprobs) == (1, 4, 2)


def test_sampling_params_of_later_sequences_differ_in_seed_and_prompt_logprobs_alone() -> None:
    from neox_serve.engine.vllm_requests import sampling_params

    first, third = sampling_params(REQUEST, 0), sampling_params(REQUEST, 2)
    assert (third.seed, third.prompt_logprobs) == (42, None)
    third.seed, third.prompt_logprobs = first.seed, first.prompt_logprobs
    assert repr(third) == repr(first)
