"""gRPC's layer on top of HTTP/2: length-prefixed messages, and timeouts, statuses and metadata in headers.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import grpc

Headers = list[tuple[bytes, bytes]]
Metadata = Sequence[tuple[str, str | bytes]]

ENCODINGS = "identity, deflate, gzip"
"""Accepted values of grpc-encoding."""

_HEAD_BYTES = 5
_TIMEOUT_UNITS_S: Mapping[str, float] = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_TIMEOUT_DIGITS = 8
_INFLATE_WINDOW: Mapping[str, int] = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""Characters that grpc-message holds as they are; all others are percent-encoded."""
_RESERVED = ("grpc-", ":")
"""Prefixes of headers that are not metadata."""
_HTTP_ONLY = frozenset({"content-type", "te"})
"""Further headers that are not metadata."""


class StatusError(Exception):
    """Ends a call with a status that the transport chooses, not the handler."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


def framed(message: bytes) -> bytes:
    """Returns an uncompressed message with its gRPC prefix, ready for DATA frames."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class MessageReader:
    """Assembles messages from the contents of DATA frames."""

    def __init__(self, max_bytes: int, encoding: str) -> None:
        """`max_bytes` limits each message before and after decompression; `encoding` is the value of grpc-encoding."""
        self._max_bytes = max_bytes
        self._encoding = encoding
        self._buffer = bytearray()

    @property
    def in_message(self) -> bool:
        """Whether part of a message has been received."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the messages that the data completes. Raises StatusError if one is too large or cannot be decompressed."""
        self._buffer += data
        messages: list[bytes] = []
        while len(self._buffer) >= _HEAD_BYTES:
            size = int.from_bytes(self._buffer[1:_HEAD_BYTES], "big")
            self._check_size(size)
            end = _HEAD_BYTES + size
            if len(self._buffer) < end:
                break
            compressed, payload = self._buffer[0], bytes(self._buffer[_HEAD_BYTES:end])
            del self._buffer[:end]
            messages.append(self._inflated(payload) if compressed else payload)
        return messages

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            message = f"Received message larger than max ({size} vs. {self._max_bytes})"
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    def _inflated(self, payload: bytes) -> bytes:
        if self._encoding == "identity":
            raise StatusError(grpc.StatusCode.INTERNAL, "a message is compressed, but the request has no grpc-encoding header")
        window = _INFLATE_WINDOW.get(self._encoding)
        if window is None:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"grpc-encoding {self._encoding!r} is not supported; use one of {ENCODINGS}")
        inflater = zlib.decompressobj(window)
        try:
            message = inflater.decompress(payload, self._max_bytes + 1)
        except zlib.error as error:
            raise StatusError(grpc.StatusCode.INTERNAL, f"a message is not valid {self._encoding}: {error}") from error
        self._check_size(len(message))
        if not inflater.eof or inflater.unused_data:
            raise StatusError(grpc.StatusCode.INTERNAL, f"a message is not exactly one complete {self._encoding} stream")
        return message


def timeout_s(value: str) -> float:
    """Returns the value of a grpc-timeout header in seconds. Raises StatusError if it is malformed."""
    digits, unit = value[:-1], value[-1:]
    if unit not in _TIMEOUT_UNITS_S or not digits.isascii() or not digits.isdigit() or len(digits) > _MAX_TIMEOUT_DIGITS:
        raise StatusError(
            grpc.StatusCode.INTERNAL, f"grpc-timeout {value!r} is invalid; it must be up to 8 digits and one of H, M, S, m, u, n"
        )
    return int(digits) * _TIMEOUT_UNITS_S[unit]


def response_headers(metadata: Metadata = ()) -> Headers:
    """Returns the HEADERS that begin a response."""
    return [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", ENCODINGS.encode()),
        *metadata_headers(metadata),
    ]


def status_headers(code: grpc.StatusCode, details: str, metadata: Metadata = ()) -> Headers:
    """Returns the trailers that end a call."""
    number: int = code.value[0]
    headers = [(b"grpc-status", b"%d" % number)]
    if details:
        headers.append((b"grpc-message", quote(details, safe=_PLAIN, errors="replace").encode("ascii")))
    return headers + metadata_headers(metadata)


def metadata_headers(metadata: Metadata) -> Headers:
    """Returns metadata as headers. Values of keys that end with "-bin" are bytes and become base64."""
    return [(key.encode("ascii"), _header_value(key, value)) for key, value in metadata]


def metadata_of(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the metadata among request headers. Raises StatusError if a binary value is not base64."""
    return tuple(
        (key, part)
        for key, value in headers
        if not key.startswith(_RESERVED) and key not in _HTTP_ONLY
        for part in (_decoded(key, value) if key.endswith("-bin") else (value,))
    )


def _header_value(key: str, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return base64.b64encode(raw).rstrip(b"=") if key.endswith("-bin") else raw


def _decoded(key: str, value: str) -> list[bytes]:
    """Decodes the values of a binary key, which clients and proxies may join with commas."""
    try:
        parts = [part.strip() for part in value.split(",")]
        return [base64.b64decode(part + "=" * (-len(part) % 4), validate=True) for part in parts]
    except (binascii.Error, ValueError) as error:
        raise StatusError(grpc.StatusCode.INTERNAL, f"metadata {key!r} is not base64") from error
