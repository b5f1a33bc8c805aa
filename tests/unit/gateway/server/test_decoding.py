"""Errors for bytes that are not a valid request."""

import contextlib

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server.decoding import Decoder
from neox_serve.v1 import generation_pb2, inference_service_pb2

MAX_BYTES = 4096
DECODER = Decoder(inference_service_pb2.GenerateRequest, MAX_BYTES)
WHOLE = inference_service_pb2.GenerateRequest(
    request_id="id-placeholder",
    prompts=[generation_pb2.Prompt(text="good"), generation_pb2.Prompt(text="bad-text-here")],
    parameters=generation_pb2.GenerationParameters(
        stopping=generation_pb2.Stopping(stop_sequences=["fine", "wrong-one"]),
        sampling=generation_pb2.Sampling(temperature=0.5, logit_bias={1: 2.0}),
        structured_output=generation_pb2.StructuredOutput(choice=generation_pb2.Choices(texts=["choice-text"])),
    ),
)


def refused(raw: bytes) -> ServeError:
    with pytest.raises(ServeError) as caught:
        DECODER.decode(raw)
    return caught.value


def decode_or_refuse(raw: bytes) -> None:
    """Decodes bytes, and fails on any exception except ServeError."""
    with contextlib.suppress(ServeError):
        DECODER.decode(raw)


def test_valid_message_is_decoded() -> None:
    assert DECODER.decode(WHOLE.SerializeToString()) == WHOLE


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("id-placeholder", "request_id"),
        ("bad-text-here", "prompts[1].text"),
        ("wrong-one", "parameters.stopping.stop_sequences[1]"),
        ("choice-text", "parameters.structured_output.choice.texts[0]"),
    ],
)
def test_invalid_utf8_names_the_field(text: str, path: str) -> None:
    raw = WHOLE.SerializeToString().replace(text.encode(), b"\xff" * len(text))
    error = refused(raw)
    assert error.reason is Reason.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [path]
    assert "UTF-8" in error.message


def unknown(message: object, number: int) -> None:
    """Adds a field that the schema lacks to a message."""
    message.MergeFromString(bytes([(number << 3) & 0x7F | 0x80, number >> 4, 1]))  # type: ignore[attr-defined]


def test_unknown_fields_name_number_and_message() -> None:
    message = inference_service_pb2.GenerateRequest()
    message.CopyFrom(WHOLE)
    unknown(message, 100)
    unknown(message.prompts[1], 101)
    unknown(message.parameters.stopping, 102)
    error = refused(message.SerializeToString())
    assert {violation.field for violation in error.violations} == {"100", "prompts[1].101", "parameters.stopping.102"}
    assert any("neox_serve.v1.Stopping has no field with number 102" in violation.description for violation in error.violations)


def test_message_of_another_type_is_refused() -> None:
    assert refused(b"\xff\xff\xff").violations[0].field == "request"
    assert refused(FileDescriptorSet().SerializeToString() + b"\x0a\x05ab").violations[0].field == "request"


def test_message_over_the_limit_says_by_how_much() -> None:
    error = refused(b"x" * (MAX_BYTES + 1))
    assert error.reason is Reason.REQUEST_TOO_LARGE
    assert error.metadata == {"request_bytes": str(MAX_BYTES + 1), "max_request_bytes": str(MAX_BYTES)}


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_serve_error(raw: bytes) -> None:
    decode_or_refuse(raw)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_gives_a_message_or_a_serve_error(position: int, value: int) -> None:
    raw = bytearray(WHOLE.SerializeToString())
    raw[position % len(raw)] = value
    decode_or_refuse(bytes(raw))
