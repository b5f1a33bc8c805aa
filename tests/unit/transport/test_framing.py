"""gRPC's layer on HTTP/2: messages, timeouts, statuses, metadata."""

import gzip
import zlib
from urllib.parse import unquote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.transport.framing import MessageReader, StatusError, framed, metadata_headers, metadata_of, status_headers, timeout_s

MAX_BYTES = 1000


def reader(encoding: str = "identity") -> MessageReader:
    return MessageReader(MAX_BYTES, encoding)


def compressed(payload: bytes) -> bytes:
    return b"\1" + len(payload).to_bytes(4, "big") + payload


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(min_value=1, max_value=30)))
def test_reader_reassembles_messages_cut_anywhere(messages: list[bytes], cuts: list[int]) -> None:
    stream, got, under_test = b"".join(framed(message) for message in messages), [], reader()
    for size in cuts:
        got += under_test.feed(stream[:size])
        stream = stream[size:]
    got += under_test.feed(stream)
    assert got == messages
    assert not under_test.in_message


def test_reader_returns_compressed_and_plain_messages_of_one_chunk() -> None:
    chunk = framed(b"a") + compressed(gzip.compress(b"b")) + framed(b"") + compressed(gzip.compress(b""))
    assert reader("gzip").feed(chunk) == [b"a", b"b", b"", b""]


def test_reader_after_part_of_a_message_is_in_message() -> None:
    under_test = reader()
    assert under_test.feed(framed(b"abc")[:-1]) == []
    assert under_test.in_message


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_reader_inflates_a_compressed_message(encoding: str, compress: object) -> None:
    assert callable(compress)
    assert reader(encoding).feed(compressed(compress(b"x" * MAX_BYTES))) == [b"x" * MAX_BYTES]


@pytest.mark.parametrize(
    ("encoding", "data", "code"),
    [
        ("identity", framed(b"x" * (MAX_BYTES + 1)), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("gzip", compressed(gzip.compress(b"x" * 10**7)[:MAX_BYTES]), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("deflate", compressed(zlib.compress(b"x" * (MAX_BYTES + 1))), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("gzip", compressed(b"no gzip"), grpc.StatusCode.INTERNAL),
        ("gzip", compressed(gzip.compress(b"some text")[:-9]), grpc.StatusCode.INTERNAL),
        ("gzip", compressed(gzip.compress(b"some text") + b"more"), grpc.StatusCode.INTERNAL),
        ("deflate", compressed(b""), grpc.StatusCode.INTERNAL),
        ("br", compressed(b"x"), grpc.StatusCode.UNIMPLEMENTED),
        ("identity", compressed(b"x"), grpc.StatusCode.INTERNAL),
    ],
    ids=["too large", "bomb", "one byte too large", "broken", "cut off", "too long", "empty", "unknown encoding", "no encoding"],
)
def test_reader_refuses_an_invalid_message(encoding: str, data: bytes, code: grpc.StatusCode) -> None:
    with pytest.raises(StatusError) as caught:
        reader(encoding).feed(data)
    assert caught.value.code is code


@pytest.mark.parametrize(("value", "seconds"), [("2H", 7200), ("3M", 180), ("5S", 5), ("250m", 0.25), ("10u", 1e-5), ("9n", 9e-9)])
def test_timeout_of_every_unit_is_in_seconds(value: str, seconds: float) -> None:
    assert timeout_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5", "S", "-1S", "1.5S", "123456789S", "5s", "٣S"])
def test_malformed_timeout_is_refused(value: str) -> None:
    with pytest.raises(StatusError):
        timeout_s(value)


@given(st.text())
def test_status_message_of_any_text_survives_as_plain_ascii(text: str) -> None:
    headers = dict(status_headers(grpc.StatusCode.INTERNAL, text.encode("utf-8", "replace").decode()))
    message = headers.get(b"grpc-message", b"")
    assert all(0x20 <= byte < 0x7F for byte in message)
    assert unquote(message.decode()) == text.encode("utf-8", "replace").decode()


def test_status_message_with_half_a_character_gets_a_replacement_mark() -> None:
    assert dict(status_headers(grpc.StatusCode.INTERNAL, "a\ud800b"))[b"grpc-message"] == b"a?b"


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=4))
def test_binary_metadata_joined_by_commas_is_split(values: list[bytes]) -> None:
    encoded = [value.decode() for _, value in metadata_headers([("token-bin", value) for value in values])]
    assert metadata_of([("token-bin", ", ".join(encoded))]) == tuple(("token-bin", value) for value in values)


def test_binary_metadata_with_padding_is_decoded() -> None:
    assert metadata_of([("token-bin", "AAE=")]) == (("token-bin", b"\0\1"),)


@given(st.binary())
def test_binary_metadata_survives(value: bytes) -> None:
    ((key, encoded),) = metadata_headers([("token-bin", value)])
    assert metadata_of([(key.decode(), encoded.decode())]) == (("token-bin", value),)


def test_metadata_excludes_headers_of_the_protocol() -> None:
    headers = [(":path", "/x"), ("grpc-timeout", "1S"), ("te", "trailers"), ("content-type", "application/grpc"), ("mine", "1")]
    assert metadata_of(headers) == (("mine", "1"),)


def test_metadata_that_is_not_base64_is_refused() -> None:
    with pytest.raises(StatusError):
        metadata_of([("token-bin", "!")])
