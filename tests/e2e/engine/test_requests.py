"""Our requests as vLLM's parameters, field by field: two that change places would change texts and fail nothing else."""

from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from neox_serve.core.types import Choice, GenerationRequest, JsonSchema, Regex, Sampling, Stopping, StructuredOutput
from neox_serve.engine.vllm import requests as vllm_requests

pytestmark = pytest.mark.e2e

# Every value differs from every other and from its default.
SAMPLING = Sampling(
    temperature=0.71,
    top_p=0.92,
    top_k=33,
    min_p=0.04,
    repetition_penalty=1.15,
    presence_penalty=0.26,
    frequency_penalty=-0.37,
    seed=480,
    logit_bias={59: 6.5, 60: -100.0},
)
STOPPING = Stopping(max_tokens=77, min_tokens=8, stop_sequences=("END",), stop_token_ids=(91, 92), ignore_eos=True)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest("r", (1, 2, 3), **({"stopping": Stopping(5)} | fields))


def test_sampling_params_contain_every_field_under_its_own_name() -> None:
    params = vllm_requests.sampling_params(request(sampling=SAMPLING, stopping=STOPPING, logprobs=3, prompt_logprobs=4), 0)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.71, 0.92, 33, 0.04)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.15, 0.26, -0.37)
    assert params.logit_bias == {59: 6.5, 60: -100.0}
    assert params.seed == 480
    assert (params.max_tokens, params.min_tokens, params.ignore_eos) == (77, 8, True)
    assert params.stop_token_ids == [91, 92]
    assert (params.logprobs, params.prompt_logprobs) == (3, 4)
    assert params.n == 1
    assert params.output_kind is RequestOutputKind.DELTA


def test_sampling_params_disable_vllms_detokenization() -> None:
    params = vllm_requests.sampling_params(request(stopping=STOPPING), 0)
    assert (params.detokenize, params.stop) == (False, [])


def test_sampling_params_of_a_plain_request_equal_vllms_defaults() -> None:
    params, plain = vllm_requests.sampling_params(request(), 0), SamplingParams(max_tokens=5)
    same = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "logit_bias")
    assert {name: getattr(params, name) for name in same} == {name: getattr(plain, name) for name in same}
    assert (params.logprobs, params.prompt_logprobs, params.structured_outputs) == (None, None, None)


def test_sampling_params_of_a_later_sequence_have_another_seed_and_no_prompt_logprobs() -> None:
    asked = request(sampling=SAMPLING, n=3, logprobs=3, prompt_logprobs=4)
    params = vllm_requests.sampling_params(asked, 2)
    assert (params.seed, params.logprobs, params.prompt_logprobs) == (482, 3, None)


@pytest.mark.parametrize(
    ("structured_output", "field", "value"),
    [
        (JsonSchema('{"type": "object"}'), "json", '{"type": "object"}'),
        (Regex("[0-9]+"), "regex", "[0-9]+"),
        (Choice(("yes", "no")), "choice", ["yes", "no"]),
    ],
    ids=["json", "regex", "choice"],
)
def test_sampling_params_of_a_structured_output_contain_its_kind(structured_output: StructuredOutput, field: str, value: object) -> None:
    structured = vllm_requests.sampling_params(request(structured_output=structured_output), 0).structured_outputs
    kinds = ("json", "regex", "choice")
    assert {kind: getattr(structured, kind) for kind in kinds} == dict.fromkeys(kinds) | {field: value}


def test_beam_step_params_request_one_greedy_token_with_candidates() -> None:
    params = vllm_requests.beam_step_params(6)
    assert (params.temperature, params.max_tokens, params.logprobs, params.detokenize) == (0.0, 1, 6, False)


@pytest.mark.parametrize(("per_token", "task"), [(True, "token_embed"), (False, "embed")])
def test_pooling_params_request_vectors_without_normalization(per_token: bool, task: str) -> None:
    params = vllm_requests.pooling_params(per_token=per_token)
    assert (params.task, params.use_activation) == (task, False)
