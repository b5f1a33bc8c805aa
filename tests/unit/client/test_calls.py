"""The requests that the client builds, and errors that name the wrong field. No server is needed."""

import inspect
import json
from typing import Any

import numpy as np
import pytest

from neox_serve.client import AsyncClient, Client, calls
from neox_serve.client.connection import DEFAULT_ADDRESS, Tls, service_config
from neox_serve.client.options import GenerateOptions, Prompt, StreamOptions
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pooling
from neox_serve.settings.gateway import GatewaySettings
from neox_serve.v1 import generation_pb2, inference_service_pb2

EVERY_OPTION: GenerateOptions = {
    "request_id": "r-1",
    "model": "m",
    "adapter": "a",
    "timeout_s": 3.0,
    "max_tokens": 5,
    "min_tokens": 1,
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": 4,
    "min_p": 0.25,
    "repetition_penalty": 1.5,
    "presence_penalty": -1.0,
    "frequency_penalty": 0.5,
    "seed": 2**62,
    "logit_bias": {7: -2.5},
    "stop": ["\n", "END"],
    "stop_token_ids": [0, 1],
    "ignore_eos": True,
    "include_stop_in_output": True,
    "json_schema": {"type": "object"},
    "n": 2,
    "logprobs": 0,
    "prompt_logprobs": 3,
    "truncation": "keep_end",
    "on_deadline": "partial",
    "priority": "bulk",
    "beam_width": 3,
    "length_penalty": 0.5,
    "num_return": 2,
}


def test_generate_with_every_option_fills_every_field() -> None:
    call = calls.generate("hi", EVERY_OPTION)
    request: Any = call.request
    assert (call.timeout_s, call.request_id, request.model, request.adapter) == (3.0, "r-1", "m", "a")
    assert request.prompts == [generation_pb2.Prompt(text="hi")]
    parameters = request.parameters
    expected = generation_pb2.GenerationParameters(
        sampling=generation_pb2.Sampling(
            temperature=0.0,
            top_p=0.5,
            top_k=4,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=-1.0,
            frequency_penalty=0.5,
            seed=2**62,
            logit_bias={7: -2.5},
        ),
        stopping=generation_pb2.Stopping(
            max_tokens=5,
            min_tokens=1,
            stop_sequences=["\n", "END"],
            stop_token_ids=[0, 1],
            ignore_eos=True,
            include_stop_in_output=True,
        ),
        structured_output=generation_pb2.StructuredOutput(json_schema=json.dumps({"type": "object"})),
        n=2,
        logprobs=0,
        prompt_logprobs=3,
        truncation=generation_pb2.TRUNCATION_KEEP_END,
        on_deadline=generation_pb2.DEADLINE_BEHAVIOR_RETURN_PARTIAL,
    )
    assert parameters == expected
    assert request.beam_search == generation_pb2.BeamSearch(beam_width=3, length_penalty=0.5, num_return=2)


def test_generation_options_cover_every_field_of_the_parameters() -> None:
    request: Any = calls.generate("hi", EVERY_OPTION).request
    parameters = request.parameters
    for message in (parameters, parameters.sampling, parameters.stopping, request.beam_search, request):
        assert {field.name for field, _ in message.ListFields()} == {field.name for field in message.DESCRIPTOR.fields}


def test_generate_without_options_leaves_all_fields_absent() -> None:
    request: Any = calls.generate("hi", {}).request
    assert request.parameters == generation_pb2.GenerationParameters()
    assert not request.HasField("beam_search")
    assert len(request.request_id) == 32


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", [generation_pb2.Prompt(text="a")]),
        ("", [generation_pb2.Prompt(text="")]),
        ([1, 2], [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[1, 2]))]),
        (np.array([1, 2]), [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[1, 2]))]),
        (["a", [3]], [generation_pb2.Prompt(text="a"), generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[3]))]),
        ([[]], [generation_pb2.Prompt(token_ids=generation_pb2.TokenIds())]),
        ([], []),
    ],
)
def test_prompts_of_each_form_become_their_messages(prompts: Any, expected: list[generation_pb2.Prompt]) -> None:
    request: Any = calls.generate(prompts, {}).request
    assert list(request.prompts) == expected
    assert all(prompt.WhichOneof("content") for prompt in request.prompts)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": -1}, "parameters.stopping.max_tokens"),
        ({"seed": -1}, "parameters.sampling.seed"),
        ({"temperature": "hot"}, "parameters.sampling.temperature"),
        ({"logit_bias": {-1: 1.0}}, "parameters.sampling.logit_bias"),
        ({"stop": ["\ud800"]}, "parameters.stopping.stop_sequences"),
        ({"n": 2**40}, "parameters.n"),
        ({"truncation": "middle"}, "truncation"),
        ({"on_deadline": "panic"}, "on_deadline"),
        ({"regex": "a", "choice": ["a"]}, "parameters.structured_output"),
        ({"beam_width": -2}, "beam_search.beam_width"),
    ],
)
def test_generate_with_an_unrepresentable_value_names_the_field(options: Any, field: str) -> None:
    with pytest.raises(ServeError) as caught:
        calls.generate("hi", options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == [field]


def test_prompt_with_a_negative_token_names_the_prompt() -> None:
    prompts: list[Prompt] = ["a", [-1]]
    with pytest.raises(ServeError) as caught:
        calls.generate(prompts, {})
    assert caught.value.violations[0].field == "prompts[1].token_ids.ids"


def test_generate_with_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_token;"):
        calls.generate("hi", {"max_token": 3})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match="beam_width"):
        calls.stream("hi", {"beam_width": 3})  # type: ignore[typeddict-unknown-key]


def test_stream_with_chunk_options_sets_their_fields() -> None:
    request: Any = calls.stream("hi", {"min_chunk_interval_s": 0.25, "min_chunk_tokens": 4}).request
    assert request.options.min_chunk_interval.ToMilliseconds() == 250
    assert request.options.min_chunk_tokens == 4


def test_stream_without_chunk_options_leaves_them_absent() -> None:
    request: Any = calls.stream("hi", {"max_tokens": 3}).request
    assert not request.HasField("options")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_chunk_interval_s": float("nan")}, "options.min_chunk_interval"),
        ({"min_chunk_interval_s": float("inf")}, "options.min_chunk_interval"),
        ({"min_chunk_interval_s": "often"}, "options.min_chunk_interval"),
        ({"min_chunk_interval_s": 1e30}, "options.min_chunk_interval"),
        ({"min_chunk_tokens": -1}, "options.min_chunk_tokens"),
    ],
)
def test_stream_with_an_unrepresentable_value_names_the_field(options: Any, field: str) -> None:
    with pytest.raises(ServeError) as caught:
        calls.stream("hi", options)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_embed_accepts_pooling_as_word_or_enum() -> None:
    for pooling in ("last", Pooling.LAST):
        request: Any = calls.embed(["a", "b"], {"pooling": pooling, "normalize": False}).request
        assert request.pooling == inference_service_pb2.POOLING_LAST
        assert request.HasField("normalize")
        assert not request.normalize


def test_score_with_an_empty_context_leaves_it_absent() -> None:
    request: Any = calls.score([("", "a"), ([], [5]), ("b", "c")], {}).request
    assert [item.HasField("context") for item in request.items] == [False, False, True]


def test_tokenize_and_detokenize_accept_one_or_many() -> None:
    one: Any = calls.tokenize("ab", include_offsets=True, options={}).request
    assert (list(one.texts), one.include_offsets) == (["ab"], True)
    many: Any = calls.detokenize([[1], [2, 3]], {}).request
    assert [list(sequence.ids) for sequence in many.sequences] == [[1], [2, 3]]
    single: Any = calls.detokenize([1, 2], {}).request
    assert [list(sequence.ids) for sequence in single.sequences] == [[1, 2]]


def test_blocking_and_asyncio_client_have_the_same_methods() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        methods = {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}
        return {name: [str(it) for it in inspect.signature(value).parameters.values()] for name, value in methods.items()}

    assert surface(Client) == surface(AsyncClient)
    assert [*inspect.signature(Client).parameters] == [*inspect.signature(AsyncClient).parameters]


def test_generate_and_stream_options_differ_only_in_beams_and_chunks() -> None:
    generate, stream = GenerateOptions.__annotations__.keys(), StreamOptions.__annotations__.keys()
    assert generate - stream == {"beam_width", "length_penalty", "num_return"}
    assert stream - generate == {"min_chunk_interval_s", "min_chunk_tokens"}


def test_default_address_is_that_of_the_default_settings() -> None:
    gateway = GatewaySettings()
    assert f"{gateway.host}:{gateway.port}" == DEFAULT_ADDRESS


def test_service_config_checks_health_only_if_requested() -> None:
    assert service_config(health_checked=False) == {"loadBalancingConfig": [{"round_robin": {}}]}
    assert service_config(health_checked=True)["healthCheckConfig"] == {"serviceName": "neox_serve.v1.InferenceService"}


def test_tls_with_a_certificate_but_no_key_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="together"):
        Tls(certificate=tmp_path / "c.pem")
