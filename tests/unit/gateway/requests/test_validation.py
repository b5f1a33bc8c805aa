"""Every field of a request against the range in the protos; errors name the field and the value."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.requests import validation
from neox_serve.gateway.requests.served import Served
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import parse
from neox_serve.settings.slices import ServedModelSettings
from neox_serve.v1 import generation_pb2, inference_service_pb2, token_service_pb2

VOCABULARY = 1000
CONTEXT = 64

FACTS = ModelFacts(
    layers=2,
    heads=2,
    hidden_size=32,
    intermediate_size=64,
    vocabulary_size=VOCABULARY,
    positions=CONTEXT,
    rotary_fraction=0.25,
    parallel_residual=True,
    tied_embeddings=False,
    eos_token_id=0,
    weights_dtype="float32",
)


def _served(values: dict[str, Any]) -> Served:
    return Served.from_settings(ServedModelSettings.from_settings(parse(values)), FACTS)


SERVED = _served({"model": {"adapters": [{"name": "tuned", "path": "/adapters/tuned"}]}})
WITHOUT_EMBEDDINGS = _served({"embedding": {"enabled": False}})


def generate(**fields: Any) -> inference_service_pb2.GenerateRequest:
    """Returns a valid request, changed by fields in the JSON form of protobuf."""
    return json_format.ParseDict({"prompts": [{"text": "a"}], **fields}, inference_service_pb2.GenerateRequest())


def refused(request: inference_service_pb2.GenerateRequest) -> ServeError:
    with pytest.raises(ServeError) as caught:
        validation.check_generate(request, SERVED)
    return caught.value


def refused_fields(request: inference_service_pb2.GenerateRequest) -> list[str]:
    error = refused(request)
    assert error.reason is Reason.INVALID_ARGUMENT
    return [violation.field for violation in error.violations]


SAMPLING = "parameters.sampling"
NUMBERS = {
    f"{SAMPLING}.temperature": (0.0, 2.0, False),
    f"{SAMPLING}.top_p": (0.0, 1.0, True),
    f"{SAMPLING}.min_p": (0.0, 1.0, False),
    f"{SAMPLING}.repetition_penalty": (0.0, 2.0, True),
    f"{SAMPLING}.presence_penalty": (-2.0, 2.0, False),
    f"{SAMPLING}.frequency_penalty": (-2.0, 2.0, False),
}


def with_field(path: str, value: object) -> inference_service_pb2.GenerateRequest:
    request = generate()
    *parents, name = path.split(".")
    message: Any = request
    for parent in parents:
        message = getattr(message, parent)
    setattr(message, name, value)
    return request


@given(st.sampled_from(sorted(NUMBERS)), st.one_of(st.floats(), st.floats(-3, 3), st.sampled_from([0.0, -0.0, 1.0, 2.0, -2.0])))
def test_numbers_are_refused_exactly_outside_their_documented_range(path: str, value: float) -> None:
    low, high, above_low = NUMBERS[path]
    allowed = not math.isnan(value) and low <= value <= high and not (above_low and value == low)
    if allowed:
        validation.check_generate(with_field(path, value), SERVED)
    else:
        assert refused_fields(with_field(path, value)) == [path]


COUNTS = {
    "parameters.n": (1, 16),
    "parameters.logprobs": (0, 20),
    "parameters.prompt_logprobs": (0, 20),
    f"{SAMPLING}.top_k": (1, VOCABULARY),
    "parameters.stopping.max_tokens": (1, CONTEXT - 1),
    "parameters.stopping.min_tokens": (0, CONTEXT - 1),
}


@given(st.sampled_from(sorted(COUNTS)), st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 70), st.sampled_from([15, 16, 17, 1000, 1001])))
def test_counts_are_refused_exactly_outside_their_documented_range(path: str, value: int) -> None:
    low, high = COUNTS[path]
    if low <= value <= high:
        validation.check_generate(with_field(path, value), SERVED)
    else:
        assert refused_fields(with_field(path, value)) == [path]


@given(st.integers(0, 2**64 - 1))
def test_seed_is_refused_from_2_to_the_63(seed: int) -> None:
    request = with_field(f"{SAMPLING}.seed", seed)
    if seed < 2**63:
        validation.check_generate(request, SERVED)
    else:
        assert refused_fields(request) == [f"{SAMPLING}.seed"]


@given(st.text(max_size=140))
def test_request_id_follows_its_pattern(request_id: str) -> None:
    allowed = all(character.isascii() and (character.isalnum() or character in "._:-") for character in request_id)
    request = generate(requestId=request_id)
    if allowed and len(request_id) <= 128:
        validation.check_generate(request, SERVED)
    else:
        assert refused_fields(request) == ["request_id"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, "prompts"),
    ({"prompts": [{"text": "a"}] * 65}, "prompts"),
    ({"prompts": [{"text": "a"}, {}]}, "prompts[1]"),
    ({"prompts": [{"text": ""}]}, "prompts[0].text"),
    ({"prompts": [{"tokenIds": {}}]}, "prompts[0].token_ids"),
    ({"prompts": [{"tokenIds": {"ids": [1, VOCABULARY]}}]}, "prompts[0].token_ids.ids[1]"),
    ({"parameters": {"truncation": 9}}, "parameters.truncation"),
    ({"parameters": {"onDeadline": 9}}, "parameters.on_deadline"),
    ({"parameters": {"sampling": {"logitBias": {VOCABULARY: 1.0}}}}, f"{SAMPLING}.logit_bias[{VOCABULARY}]"),
    ({"parameters": {"sampling": {"logitBias": {"7": 101.0}}}}, f"{SAMPLING}.logit_bias[7]"),
    ({"parameters": {"sampling": {"logitBias": {"7": "NaN"}}}}, f"{SAMPLING}.logit_bias[7]"),
    ({"parameters": {"stopping": {"stopSequences": ["a"] * 17}}}, "parameters.stopping.stop_sequences"),
    ({"parameters": {"stopping": {"stopSequences": ["a", ""]}}}, "parameters.stopping.stop_sequences[1]"),
    ({"parameters": {"stopping": {"stopSequences": ["ß" * 129]}}}, "parameters.stopping.stop_sequences[0]"),
    ({"parameters": {"stopping": {"stopTokenIds": [1] * 129}}}, "parameters.stopping.stop_token_ids"),
    ({"parameters": {"stopping": {"stopTokenIds": [VOCABULARY]}}}, "parameters.stopping.stop_token_ids[0]"),
    ({"parameters": {"stopping": {"maxTokens": 0}}}, "parameters.stopping.max_tokens"),
    ({"parameters": {"stopping": {"maxTokens": 5, "minTokens": 6}}}, "parameters.stopping.min_tokens"),
    ({"parameters": {"structuredOutput": {}}}, "parameters.structured_output"),
    ({"beamSearch": {}}, "beam_search.beam_width"),
    ({"beamSearch": {"beamWidth": 9}}, "beam_search.beam_width"),
    ({"beamSearch": {"beamWidth": 2, "numReturn": 3}}, "beam_search.num_return"),
    ({"beamSearch": {"beamWidth": 2, "numReturn": 0}}, "beam_search.num_return"),
    ({"beamSearch": {"beamWidth": 2, "lengthPenalty": "NaN"}}, "beam_search.length_penalty"),
    ({"beamSearch": {"beamWidth": 2, "lengthPenalty": 5.5}}, "beam_search.length_penalty"),
]


@pytest.mark.parametrize(("fields", "path"), WRONG, ids=[path + str(number) for number, (_, path) in enumerate(WRONG)])
def test_invalid_field_is_named(fields: dict[str, Any], path: str) -> None:
    error = refused(generate(**fields))
    assert [violation.field for violation in error.violations] == [path]
    assert path in error.message


def test_logit_bias_beyond_1024_entries_is_refused() -> None:
    request = generate()
    for token_id in range(1025):
        request.parameters.sampling.logit_bias[token_id % VOCABULARY + token_id // VOCABULARY * VOCABULARY] = 1.0
    assert refused_fields(request)[0] == f"{SAMPLING}.logit_bias"


@pytest.mark.parametrize("companion", ["sampling", "structured_output", "n", "logprobs", "prompt_logprobs", "stopping.min_tokens"])
def test_beam_search_forbids_sampling_fields(companion: str) -> None:
    values: dict[str, Any] = {
        "sampling": {"topP": 0.5},
        "structured_output": {"regex": "a"},
        "n": 2,
        "logprobs": 1,
        "prompt_logprobs": 1,
        "stopping.min_tokens": 1,
    }
    value = values[companion]
    parameters = {"stopping": {"min_tokens": value}} if "." in companion else {companion: value}
    assert refused_fields(generate(beamSearch={"beamWidth": 2}, parameters=parameters)) == [f"parameters.{companion}"]


def test_all_invalid_fields_are_reported_at_once() -> None:
    request = generate(prompts=[{"text": ""}], parameters={"n": 0, "sampling": {"temperature": -1, "topP": 2}})
    assert refused_fields(request) == ["prompts[0].text", f"{SAMPLING}.temperature", f"{SAMPLING}.top_p", "parameters.n"]


def test_error_names_value_and_range() -> None:
    (violation,) = refused(with_field(f"{SAMPLING}.temperature", -0.5)).violations
    assert violation.description == "got -0.5, must be in [0, 2]"


def test_unknown_model_and_adapter_list_what_is_served() -> None:
    error = refused(generate(model="gpt-5"))
    assert (error.reason, error.metadata["served"]) == (Reason.UNKNOWN_MODEL, "neox-small")
    error = refused(generate(adapter="other"))
    assert (error.reason, error.metadata["served"]) == (Reason.UNKNOWN_ADAPTER, "tuned")
    validation.check_generate(generate(model="neox-small", adapter="tuned"), SERVED)


def test_embedding_without_an_embedding_model_is_unknown_model() -> None:
    request = inference_service_pb2.EmbedRequest(inputs=[generation_pb2.Prompt(text="a")])
    validation.check_embed(request, SERVED)
    with pytest.raises(ServeError) as caught:
        validation.check_embed(request, WITHOUT_EMBEDDINGS)
    assert caught.value.reason is Reason.UNKNOWN_MODEL


def test_embed_fields_are_validated() -> None:
    values: Any = {"pooling": 9, "truncation": 9, "layer": 1}
    with pytest.raises(ServeError) as caught:
        validation.check_embed(inference_service_pb2.EmbedRequest(inputs=[generation_pb2.Prompt()], **values), SERVED)
    assert [violation.field for violation in caught.value.violations] == ["inputs[0]", "pooling", "layer", "truncation"]
    assert caught.value.violations[2].description == "got 1, must be 2, the layer of the embedding pool"


def test_stream_without_prompt_names_the_field() -> None:
    with pytest.raises(ServeError) as caught:
        validation.check_stream_generate(inference_service_pb2.StreamGenerateRequest(), SERVED)
    assert [violation.field for violation in caught.value.violations] == ["prompt"]


def check_options(**options: Any) -> None:
    """Validates a request. Raises ServeError."""
    fields = {"prompt": {"text": "a"}, "options": options}
    validation.check_stream_generate(json_format.ParseDict(fields, inference_service_pb2.StreamGenerateRequest()), SERVED)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"minChunkInterval": "0s"},
        {"minChunkInterval": "10s"},
        {"minChunkTokens": 1},
        {"minChunkInterval": "0.5s", "minChunkTokens": 1024},
    ],
)
def test_valid_stream_options_are_accepted(options: dict[str, Any]) -> None:
    check_options(**options)


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"minChunkInterval": "-0.5s"}, "options.min_chunk_interval", "got -0.5, must be in [0, 10] s"),
        ({"minChunkInterval": "10.000000001s"}, "options.min_chunk_interval", "got 10.000000001, "),
        ({"minChunkTokens": 0}, "options.min_chunk_tokens", "got 0, must be in [1, 1024]"),
        ({"minChunkTokens": 1025}, "options.min_chunk_tokens", "got 1025, "),
    ],
)
def test_invalid_stream_options_are_named(options: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ServeError) as caught:
        check_options(**options)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert violation.description.startswith(says)


def test_malformed_chunk_interval_is_refused() -> None:
    request = inference_service_pb2.StreamGenerateRequest(prompt=generation_pb2.Prompt(text="a"))
    request.options.min_chunk_interval.nanos = 2_000_000_000
    with pytest.raises(ServeError) as caught:
        validation.check_stream_generate(request, SERVED)
    assert [violation.field for violation in caught.value.violations] == ["options.min_chunk_interval"]


def test_token_calls_are_validated() -> None:
    with pytest.raises(ServeError) as caught:
        validation.check_tokenize(token_service_pb2.TokenizeRequest(), SERVED)
    assert caught.value.violations[0].field == "texts"
    sequences = [generation_pb2.TokenIds(ids=[0]), generation_pb2.TokenIds(ids=[1, VOCABULARY])]
    with pytest.raises(ServeError) as caught:
        validation.check_detokenize(token_service_pb2.DetokenizeRequest(sequences=sequences), SERVED)
    assert caught.value.violations[0].field == "sequences[1].ids[1]"


STRUCTURED_OUTPUT = "parameters.structured_output"


@pytest.mark.parametrize(
    ("structured_output", "path", "says"),
    [
        ({"jsonSchema": ""}, ".json_schema", "must be JSON"),
        ({"jsonSchema": "{"}, ".json_schema", "must be JSON"),
        ({"jsonSchema": '{"minimum": NaN}'}, ".json_schema", "NaN is not JSON"),
        ({"jsonSchema": "[1]"}, ".json_schema", "must be a JSON object"),
        ({"jsonSchema": '{"type": "strin"}'}, ".json_schema", "at '/type'"),
        ({"jsonSchema": '{"properties": {"a": {"minLength": -1}}}'}, ".json_schema", "at '/properties/a/minLength'"),
        ({"jsonSchema": '{"not":' * 5000 + "{}" + "}" * 5000}, ".json_schema", "too deeply"),
        ({"jsonSchema": "[" * 60000}, ".json_schema", "too deeply"),
        ({"jsonSchema": json.dumps({"title": "x" * 65536})}, "", "at most 65536"),
        ({"regex": ""}, ".regex", "non-empty"),
        ({"regex": "a(b"}, ".regex", "unterminated"),
        ({"regex": "[z-a]"}, ".regex", "bad character range"),
        ({"regex": "*a"}, ".regex", "nothing to repeat"),
        ({"regex": "(" * 5000 + ")" * 5000}, ".regex", "too deeply"),
        ({"choice": {}}, ".choice.texts", "1 to 256"),
        ({"choice": {"texts": [str(number) for number in range(257)]}}, ".choice.texts", "1 to 256"),
        ({"choice": {"texts": ["a", ""]}}, ".choice.texts[1]", "non-empty"),
        ({"choice": {"texts": ["a", "b", "a"]}}, ".choice.texts[2]", "distinct"),
    ],
)
def test_invalid_structured_output_is_named(structured_output: dict[str, Any], path: str, says: str) -> None:
    (violation,) = refused(generate(parameters={"structuredOutput": structured_output})).violations
    assert violation.field == STRUCTURED_OUTPUT + path
    assert says in violation.description


@pytest.mark.parametrize(
    "structured_output",
    [
        {"jsonSchema": '{"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "integer"}}}'},
        {"regex": r"\p{Lu}\w+ \d{1,3}(-[A-Z])?"},
        {"choice": {"texts": ["yes", "no"]}},
    ],
)
def test_valid_structured_output_is_accepted(structured_output: dict[str, Any]) -> None:
    validation.check_generate(generate(parameters={"structuredOutput": structured_output}), SERVED)
