"""The load generator's targets: requests and decoding of responses."""

import json

import pytest

from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets.grpc_gateway import GatewayTarget, stream_request
from neox_serve.loadgen.targets.openai_server import OpenAiTarget, completion_request
from neox_serve.v1 import generation_pb2
from neox_serve.v1 import inference_service_pb2 as pb


def event(*token_ids: int) -> bytes:
    """Returns an event of the OpenAI server."""
    return b"data: " + json.dumps({"choices": [{"text": "x", "token_ids": token_ids}]}).encode() + b"\n\n"


def openai_target() -> OpenAiTarget:
    """Returns a target without a session, for decoding."""
    return OpenAiTarget(None, "model")  # type: ignore[arg-type]


def test_openai_events_in_one_part_are_arrivals_at_one_time() -> None:
    assert openai_target().decode([(1.0, event(5) + event(6, 7))]) == Response([Arrival(1.0, (5,)), Arrival(1.0, (6, 7))])


def test_openai_event_in_two_parts_arrives_with_the_second() -> None:
    whole = event(5)
    answer = openai_target().decode([(1.0, whole[:20]), (2.0, whole[20:] + b"data: [DONE]\n\n")])
    assert answer == Response([Arrival(2.0, (5,)), Arrival(2.0, ())])


def test_openai_usage_gives_the_prompt_length() -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9}}\n\n'
    assert openai_target().decode([(1.0, event(5) + usage)]) == Response([Arrival(1.0, (5,)), Arrival(1.0, ())], prompt_tokens=9)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b'data: {"error": {"message": "too long"}}\n\n', "too long"),
        (b'data: {"choices": [{"text": "x"}]}\n\n', "token_ids"),
        (b"data: {\n\n", "Expecting"),
    ],
)
def test_openai_event_without_tokens_is_an_error(sent: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        openai_target().decode([(1.0, sent)])


def test_openai_request_is_greedy_and_of_fixed_length() -> None:
    ids, text = completion_request("m", (1, 2), 7), completion_request("m", "hi", 7)
    assert (ids["prompt"], ids["max_tokens"], ids["temperature"], ids["ignore_eos"]) == ([1, 2], 7, 0.0, True)
    assert "stream_options" not in ids
    assert (text["prompt"], text["stream_options"]) == ("hi", {"include_usage": True})


def test_gateway_messages_are_arrivals_and_the_final_one_has_no_tokens() -> None:
    chunk = pb.StreamGenerateResponse(chunk=pb.StreamChunk(text="x", token_ids=[5, 6])).SerializeToString()
    final = pb.StreamGenerateResponse(final=pb.StreamFinal(usage=generation_pb2.Usage(prompt_tokens=9))).SerializeToString()
    assert GatewayTarget([]).decode([(1.0, chunk), (2.0, final)]) == Response([Arrival(1.0, (5, 6)), Arrival(2.0, ())], prompt_tokens=9)


def test_gateway_request_is_greedy_and_of_fixed_length() -> None:
    request = stream_request((1, 2, 3), 7)
    assert list(request.prompt.token_ids.ids) == [1, 2, 3]
    assert request.parameters.sampling.HasField("temperature")
    assert request.parameters.sampling.temperature == 0.0
    assert (request.parameters.stopping.max_tokens, request.parameters.stopping.ignore_eos) == (7, True)


def test_gateway_request_of_text_names_the_model() -> None:
    request = stream_request("hi", 7, "other")
    assert (request.prompt.text, request.model) == ("hi", "other")
