"""Invalid requests over a real port: the status names the field, and nothing reaches the engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from neox_serve.core.errors import Reason, ServeError
from neox_serve.v1 import inference_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import Stubs, builtin_facts, connected, running_gateway
from tests.fakes.scripted_dispatcher import ScriptedDispatcher

REQUEST_BYTES = 100_000
GENERATE = "/neox_serve.v1.InferenceService/Generate"
STREAM = "/neox_serve.v1.InferenceService/StreamGenerate"


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher()


@pytest.fixture
async def stubs(dispatcher: ScriptedDispatcher) -> AsyncIterator[Stubs]:
    async with (
        running_gateway(dispatcher, limits={"request_bytes": REQUEST_BYTES}) as server,
        connected(server.port) as stubs,
    ):
        yield stubs
        async with asyncio.timeout(20):
            while server.requests_in_flight:  # noqa: ASYNC110 - a client receives its status before its call has left the server
                await asyncio.sleep(0.002)
    assert not dispatcher.opened
    assert not dispatcher.embedded


async def refused(call: "grpc.aio.UnaryUnaryCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]") -> ServeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else anext(aiter(call)))
    error = from_rpc_error(caught.value)
    assert error.metadata["request_id"] == dict(caught.value.trailing_metadata() or ())["neox-request-id"]
    return error


async def refused_raw(stubs: Stubs, path: str, raw: bytes) -> ServeError:
    """Returns a call that sends bytes unchanged."""
    method: Any = stubs.channel.unary_stream(path) if path == STREAM else stubs.channel.unary_unary(path)
    return await refused(method(raw))


def parameters(**values: Any) -> dict[str, Any]:
    return {"parameters": values}


TOO_LONG = {"tokenIds": {"ids": [1] * 2049}}
BAD_INPUT: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "unknown model": ({"model": "other"}, Reason.UNKNOWN_MODEL, ""),
    "unknown adapter": ({"adapter": "other"}, Reason.UNKNOWN_ADAPTER, ""),
    "empty prompt": ({"prompt": {"text": ""}}, Reason.INVALID_ARGUMENT, "{prompt}.text"),
    "no prompt": ({"prompt": {}}, Reason.INVALID_ARGUMENT, "{prompt}"),
    "prompt beyond the context": ({"prompt": TOO_LONG}, Reason.PROMPT_TOO_LONG, "{prompt}"),
    "max_tokens 0": (parameters(stopping={"maxTokens": 0}), Reason.INVALID_ARGUMENT, "parameters.stopping.max_tokens"),
    "max_tokens beyond the context": (parameters(stopping={"maxTokens": 2048}), Reason.INVALID_ARGUMENT, "parameters.stopping.max_tokens"),
    "max_tokens beyond the rest": (
        {"prompt": {"tokenIds": {"ids": [1] * 2000}}, **parameters(stopping={"maxTokens": 49})},
        Reason.PROMPT_TOO_LONG,
        "{prompt}",
    ),
    "temperature below 0": (parameters(sampling={"temperature": -0.1}), Reason.INVALID_ARGUMENT, "parameters.sampling.temperature"),
    "top_p 0": (parameters(sampling={"topP": 0}), Reason.INVALID_ARGUMENT, "parameters.sampling.top_p"),
    "top_p above 1": (parameters(sampling={"topP": 1.01}), Reason.INVALID_ARGUMENT, "parameters.sampling.top_p"),
    "NaN": (parameters(sampling={"temperature": "NaN"}), Reason.INVALID_ARGUMENT, "parameters.sampling.temperature"),
    "infinity": (parameters(sampling={"minP": "Infinity"}), Reason.INVALID_ARGUMENT, "parameters.sampling.min_p"),
    "n of 0": (parameters(n=0), Reason.INVALID_ARGUMENT, "parameters.n"),
    "n beyond the limit": (parameters(n=17), Reason.INVALID_ARGUMENT, "parameters.n"),
    "stop list too long": (
        parameters(stopping={"stopSequences": ["a"] * 17}),
        Reason.INVALID_ARGUMENT,
        "parameters.stopping.stop_sequences",
    ),
    "invalid JSON schema": (
        parameters(structuredOutput={"jsonSchema": '{"type": "nothing"}'}),
        Reason.INVALID_ARGUMENT,
        "parameters.structured_output.json_schema",
    ),
    "large invalid JSON schema": (
        parameters(structuredOutput={"jsonSchema": json.dumps({"title": "x" * 500, "type": "nothing"})}),
        Reason.INVALID_ARGUMENT,
        "parameters.structured_output.json_schema",
    ),
    "invalid regex": (parameters(structuredOutput={"regex": "a("}), Reason.INVALID_ARGUMENT, "parameters.structured_output.regex"),
    "token id out of range": (
        {"prompt": {"tokenIds": {"ids": [0, 10**6]}}},
        Reason.INVALID_ARGUMENT,
        "{prompt}.token_ids.ids[1]",
    ),
}


def messages(fields: dict[str, Any]) -> dict[str, tuple[bytes, str]]:
    """Returns the same request for both calls, with the path of the prompt in each."""
    fields = dict(fields)
    prompt = fields.pop("prompt", {"text": "a"})
    unary = json_format.ParseDict({**fields, "prompts": [{"text": "b"}, prompt]}, inference_service_pb2.GenerateRequest())
    stream = json_format.ParseDict({**fields, "prompt": prompt}, inference_service_pb2.StreamGenerateRequest())
    return {GENERATE: (unary.SerializeToString(), "prompts[1]"), STREAM: (stream.SerializeToString(), "prompt")}


@pytest.mark.parametrize("path", [GENERATE, STREAM], ids=["unary", "stream"])
@pytest.mark.parametrize("what", BAD_INPUT)
async def test_bad_input_is_refused_by_name(what: str, path: str, stubs: Stubs) -> None:
    fields, reason, field = BAD_INPUT[what]
    raw, prompt = messages(fields)[path]
    error = await refused_raw(stubs, path, raw)
    assert error.reason is reason
    if field:
        assert [violation.field for violation in error.violations] == [field.format(prompt=prompt)]
    else:
        assert error.metadata["value"] == "other"


async def test_prompt_too_long_reports_its_excess(stubs: Stubs) -> None:
    for what, excess in (("prompt beyond the context", "2"), ("max_tokens beyond the rest", "1")):
        for path, (raw, _) in messages(BAD_INPUT[what][0]).items():
            assert (await refused_raw(stubs, path, raw)).metadata["excess_tokens"] == excess


@pytest.mark.parametrize("path", [GENERATE, STREAM], ids=["unary", "stream"])
async def test_invalid_utf8_names_the_field(path: str, stubs: Stubs) -> None:
    raw, prompt = messages({"prompt": {"text": "bad-text"}})[path]
    error = await refused_raw(stubs, path, raw.replace(b"bad-text", b"\xc3\x28\xff\xfe\xfd\xfc\xfb\xfa"))
    assert (error.reason, error.violations[0].field) == (Reason.INVALID_ARGUMENT, f"{prompt}.text")


@pytest.mark.parametrize("path", [GENERATE, STREAM], ids=["unary", "stream"])
async def test_unknown_field_is_refused_with_its_number(path: str, stubs: Stubs) -> None:
    raw, _ = messages({})[path]
    error = await refused_raw(stubs, path, raw + b"\xa0\x06\x01")
    assert (error.reason, error.violations[0].field) == (Reason.INVALID_ARGUMENT, "100")


@pytest.mark.parametrize("path", [GENERATE, STREAM], ids=["unary", "stream"])
async def test_malformed_message_is_refused(path: str, stubs: Stubs) -> None:
    error = await refused_raw(stubs, path, b"\xff" * 30)
    assert (error.reason, error.violations[0].field) == (Reason.INVALID_ARGUMENT, "request")


@pytest.mark.parametrize("path", [GENERATE, STREAM], ids=["unary", "stream"])
async def test_message_over_the_limit_is_refused_with_details(path: str, stubs: Stubs) -> None:
    error = await refused_raw(stubs, path, b"x" * (REQUEST_BYTES + 1))
    assert error.reason is Reason.REQUEST_TOO_LARGE
    assert error.metadata["max_request_bytes"] == str(REQUEST_BYTES)


async def test_message_over_the_limit_of_the_transport_is_refused(stubs: Stubs) -> None:
    method: Any = stubs.channel.unary_unary(GENERATE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"x" * (5 * REQUEST_BYTES))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert from_rpc_error(caught.value).reason is Reason.REQUEST_TOO_LARGE


async def test_invalid_request_id_is_refused_under_a_generated_one(stubs: Stubs) -> None:
    raw, _ = messages({"requestId": "no spaces"})[GENERATE]
    error = await refused_raw(stubs, GENERATE, raw)
    assert error.violations[0].field == "request_id"
    assert len(error.metadata["request_id"]) == 32


async def test_embedding_input_is_validated(stubs: Stubs) -> None:
    inputs = [{"text": "a"}, {"tokenIds": {"ids": [builtin_facts().vocabulary_size]}}]
    message = json_format.ParseDict({"inputs": inputs, "pooling": 7}, inference_service_pb2.EmbedRequest())
    error = await refused(stubs.inference.Embed(message))
    assert [violation.field for violation in error.violations] == ["inputs[1].token_ids.ids[0]", "pooling"]


@pytest.mark.parametrize("path", [GENERATE, STREAM], ids=["unary", "stream"])
async def test_excessive_n_with_partial_text_allocates_nothing(path: str, stubs: Stubs) -> None:
    raw, _ = messages(parameters(n=2**32 - 1, onDeadline="DEADLINE_BEHAVIOR_RETURN_PARTIAL"))[path]
    assert (await refused_raw(stubs, path, raw)).violations[0].field == "parameters.n"
