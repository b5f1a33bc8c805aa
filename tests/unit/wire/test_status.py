"""Every error survives the way to the client and back within the limits of HTTP/2 headers."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.errors import DOMAIN, FieldViolation, QuotaViolation, Reason, ServeError, invalid
from neox_serve.wire import status

FAULTS = {Reason.INTERNAL, Reason.ENGINE_FAILED}
short = st.text(st.characters(codec="utf-8"), max_size=40)
nanoseconds = st.integers(0, 10**12)


class FailedCall(grpc.RpcError):
    """A failed call as a client sees it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None:
        self._code, self._details, self._trailing_metadata = code, details, trailing_metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing_metadata


@st.composite
def errors(draw: st.DrawFn) -> ServeError:
    waits = draw(st.one_of(st.none(), nanoseconds))
    return ServeError(
        draw(st.sampled_from(Reason)),
        draw(short),
        metadata=draw(st.dictionaries(st.text("abc_", min_size=1, max_size=10), short, max_size=4)),
        retry_after_s=None if waits is None else waits / 1e9,
        violations=tuple(draw(st.lists(st.builds(FieldViolation, short, short), max_size=4))),
        quota_violations=tuple(draw(st.lists(st.builds(QuotaViolation, short, short), max_size=3))),
    )


def round_trip(error: ServeError, request_id: str = "") -> ServeError:
    sent = status.to_grpc_status(error, request_id)
    return status.from_rpc_error(FailedCall(sent.code, sent.details, sent.trailing_metadata))


def test_codes_cover_every_reason() -> None:
    assert set(status.CODES) == set(Reason)


@given(errors())
def test_round_trip_of_any_error_loses_only_the_details_of_faults(error: ServeError) -> None:
    back = round_trip(error)
    assert back.reason is error.reason
    assert back.retry_after_s == error.retry_after_s
    assert (back.violations, back.quota_violations) == (error.violations, error.quota_violations)
    if error.reason not in FAULTS:
        assert (back.message, back.metadata) == (error.message, error.metadata)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_carries_error_info_and_its_code(reason: Reason) -> None:
    rich = status.to_rich_status(ServeError(reason, "text"), "id-1")
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (reason.value, DOMAIN, "id-1")
    assert status.from_rich_status(rich).reason is reason
    assert rich.code == status.CODES[reason].value[0]


@pytest.mark.parametrize("reason", sorted(FAULTS))
def test_faults_of_the_server_hide_their_details(reason: Reason) -> None:
    back = round_trip(ServeError(reason, "password in /etc/secret", metadata={"path": "/etc/secret"}), "id-1")
    assert "secret" not in back.message
    assert back.metadata == {"request_id": "id-1"}


@given(st.sampled_from(Reason), st.integers(0, 300), st.text(max_size=3000))
def test_status_of_a_huge_error_stays_under_8_kib_on_the_wire(reason: Reason, count: int, text: str) -> None:
    violations = tuple(FieldViolation(f"field[{index}]", text) for index in range(count))
    error = ServeError(reason, text, metadata={f"key{index}": text for index in range(20)}, retry_after_s=1.0, violations=violations)
    rich = status.to_rich_status(error, "r" * 128)
    assert len(rich.SerializeToString()) * 4 / 3 + 3 * len(rich.message.encode()) < 8192
    assert status.from_rich_status(rich).reason is reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.NO_READY_REPLICA),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED),
        (grpc.StatusCode.CANCELLED, Reason.CANCELLED),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.INTERNAL),
    ],
)
def test_status_of_the_transport_gets_the_reason_of_its_code(code: grpc.StatusCode, reason: Reason) -> None:
    error = status.from_rpc_error(FailedCall(code, "as grpc says"))
    assert error.reason is reason
    assert "as grpc says" in error.message
    assert code.name in error.message


def test_status_of_a_foreign_domain_gets_the_reason_of_its_code() -> None:
    foreign = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="elsewhere")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="QUOTA_EXCEEDED", domain="example.org"))
    assert status.from_rich_status(foreign).reason is Reason.NO_READY_REPLICA


def test_bad_request_names_the_field() -> None:
    assert round_trip(invalid("parameters.n", "0 is not in 1 to 16")).violations[0].field == "parameters.n"
