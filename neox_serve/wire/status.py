"""Errors on the wire: ServeError to google.rpc.Status with details, and back.

One table maps reasons to gRPC codes; nothing else in the system chooses a code. The status is sent base64-encoded in the trailing metadata,
beside its percent-encoded message. Peers drop header lists above 8 KiB, so all texts are limited here.
"""

from collections.abc import Iterator, Mapping, MutableSequence
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from neox_serve.core.errors import DOMAIN, FieldViolation, QuotaViolation, Reason, ServeError

CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_ADAPTER: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_JOB: grpc.StatusCode.NOT_FOUND,
    Reason.BROKEN_ADAPTER: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.REQUEST_NEVER_FITS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.REQUEST_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    Reason.NO_READY_REPLICA: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.REPLICA_LOST: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.ENGINE_FAILED: grpc.StatusCode.INTERNAL,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""The gRPC code of every reason."""

_GENERIC_TEXTS: Mapping[Reason, str] = {
    Reason.ENGINE_FAILED: "the engine failed on this request; report it with the request id",
    Reason.INTERNAL: "a fault of the server; report it with the request id",
}
"""Messages that clients see for faults of the server; the real message is only logged."""

_REASONS_OF_BARE_CODES: Mapping[grpc.StatusCode, Reason] = {
    grpc.StatusCode.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.REQUEST_TOO_LARGE,
    grpc.StatusCode.UNAVAILABLE: Reason.NO_READY_REPLICA,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Reason.CANCELLED,
}
"""Reason of a status without our details, which comes from the transport or the client's own channel. Other codes mean INTERNAL."""

_NUMBERS = {code: code.value[0] for code in grpc.StatusCode}
_CODES_BY_NUMBER = {number: code for code, number in _NUMBERS.items()}

_MAX_STATUS_BYTES = 4096
"""Size of a serialized status: 5.4 KiB in base64, which with the message leaves room for other headers in 8 KiB."""
_MAX_MESSAGE_BYTES = 512
"""Size of the message: at most 1.5 KiB percent-encoded."""
_MAX_TEXT_BYTES = 256
"""Size of each text in the details."""


def to_rich_status(error: ServeError, request_id: str = "") -> status_pb2.Status:
    """Returns the status that clients see: always with ErrorInfo, and with BadRequest, QuotaFailure and RetryInfo if the error has them.

    Faults of the server have a generic message and no metadata except `request_id`. The serialized status has at most 4 KiB: texts are
    clipped, and violations that do not fit are left out.
    """
    generic = _GENERIC_TEXTS.get(error.reason)
    status = status_pb2.Status(code=_NUMBERS[CODES[error.reason]], message=generic or clip(error.message, _MAX_MESSAGE_BYTES))
    for detail in _details(error, {} if generic else error.metadata, request_id):
        _append_if_it_fits(status, detail)
    return status


def to_grpc_status(error: ServeError, request_id: str = "") -> grpc.Status:
    """Returns the status for grpc: code, message, and trailing metadata with the details."""
    return rpc_status.to_status(to_rich_status(error, request_id))


def from_rich_status(status: status_pb2.Status) -> ServeError:
    """Returns the error that a status describes. Without our ErrorInfo, the code determines the reason."""
    code = _CODES_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    found = {type(detail) for packed in status.details for detail in (info, bad_request, quota, retry) if packed.Unpack(detail)}
    return ServeError(
        _reason(info, code),
        status.message,
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if type(retry) in found else None,
        violations=tuple(FieldViolation(it.field, it.description) for it in bad_request.field_violations),
        quota_violations=tuple(QuotaViolation(it.subject, it.description) for it in quota.violations),
    )


def from_rpc_error(error: grpc.RpcError) -> ServeError:
    """Returns the ServeError of a failed call, sync or asyncio. Without our details, the code determines the reason and grpc the text."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:  # details that contradict the code or message of the call are not ours
        status = None
    if status is not None:
        return from_rich_status(status)
    code = error.code()
    return ServeError(_REASONS_OF_BARE_CODES.get(code, Reason.INTERNAL), f"{code.name}: {error.details() or 'no details'}")


def clip(text: str, max_bytes: int) -> str:
    """Returns the text as valid UTF-8 of at most `max_bytes` bytes. An ellipsis marks a text that was cut off."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode("utf-8")
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def _details(error: ServeError, metadata: Mapping[str, str], request_id: str) -> Iterator[Message]:
    """Yields the details, the most important first."""
    metadata_texts = {clip(key, 64): clip(value, _MAX_TEXT_BYTES) for key, value in [*metadata.items()][:8]}
    if request_id:
        metadata_texts["request_id"] = clip(request_id, 128)
    yield error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata_texts)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        yield retry
    if error.violations:
        violations = [_field_violation(violation) for violation in error.violations[:16]]
        yield error_details_pb2.BadRequest(field_violations=violations)
    if error.quota_violations:
        quotas = [_quota_violation(violation) for violation in error.quota_violations[:16]]
        yield error_details_pb2.QuotaFailure(violations=quotas)


def _field_violation(violation: FieldViolation) -> error_details_pb2.BadRequest.FieldViolation:
    return error_details_pb2.BadRequest.FieldViolation(
        field=clip(violation.field, 128), description=clip(violation.description, _MAX_TEXT_BYTES)
    )


def _quota_violation(violation: QuotaViolation) -> error_details_pb2.QuotaFailure.Violation:
    return error_details_pb2.QuotaFailure.Violation(
        subject=clip(violation.subject, 128), description=clip(violation.description, _MAX_TEXT_BYTES)
    )


def _append_if_it_fits(status: status_pb2.Status, detail: Message) -> None:
    """Packs the detail, and drops violations from its end until the status fits."""
    room = _MAX_STATUS_BYTES - status.ByteSize() - 80  # 80 bytes for the type URL and lengths
    violations = _violations_of(detail)
    while detail.ByteSize() > room and violations:
        violations.pop()
    if detail.ByteSize() <= room:
        status.details.add().Pack(detail)


def _violations_of(detail: Message) -> MutableSequence[Any]:
    if isinstance(detail, error_details_pb2.BadRequest):
        return cast("MutableSequence[Any]", detail.field_violations)
    if isinstance(detail, error_details_pb2.QuotaFailure):
        return cast("MutableSequence[Any]", detail.violations)
    return []


def _reason(info: error_details_pb2.ErrorInfo, code: grpc.StatusCode) -> Reason:
    if info.domain == DOMAIN and info.reason in Reason.__members__.values():
        return Reason(info.reason)
    return _REASONS_OF_BARE_CODES.get(code, Reason.INTERNAL)
