"""Every error that can leave the system, and when to raise which.

One exception family, one table of reasons. A reason is stable: clients may switch on it. `neox_serve.wire.status` turns an error into a
gRPC status; nothing else does. INTERNAL reasons show the client a generic text only, their message goes to the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neox_serve.core.str_enum import StrEnum

DOMAIN = "neox-serve"


class Reason(StrEnum):
    """Why a request failed; the value is what ErrorInfo.reason carries."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"  # a field is wrong; violations name it
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"  # prompt (plus max_tokens) exceeds the context; metadata: excess_tokens
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_ADAPTER = "UNKNOWN_ADAPTER"
    UNKNOWN_JOB = "UNKNOWN_JOB"
    BROKEN_ADAPTER = "BROKEN_ADAPTER"  # its files are missing, damaged or for another model
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"  # waiting helps: retry_after_s is set
    REQUEST_NEVER_FITS = "REQUEST_NEVER_FITS"  # waiting does not help
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"  # the message is over the size limit
    OVERLOADED = "OVERLOADED"
    NO_READY_REPLICA = "NO_READY_REPLICA"
    DRAINING = "DRAINING"
    REPLICA_LOST = "REPLICA_LOST"  # the replica died after output was sent
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ENGINE_FAILED = "ENGINE_FAILED"  # the engine broke on this request
    INTERNAL = "INTERNAL"  # anything unforeseen


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: `field` is its path ("parameters.sampling.top_p"), `description` names value and allowed range."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One exhausted quota: whose (`subject`) and which (`description`)."""

    subject: str
    description: str


@dataclass(slots=True)
class ServeError(Exception):
    """The one error of neox-serve.

    reason: what clients switch on. message: for people, one sentence. metadata: machine-readable facts for ErrorInfo.
    retry_after_s: seconds after which trying again makes sense; None where it does not.
    violations: only with INVALID_ARGUMENT and PROMPT_TOO_LONG. quota_violations: only with QUOTA_EXCEEDED.
    """

    reason: Reason
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    violations: tuple[FieldViolation, ...] = ()
    quota_violations: tuple[QuotaViolation, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[type["ServeError"], tuple[object, ...]]:
        fields = (
            self.reason,
            self.message,
            dict(self.metadata),
            self.retry_after_s,
            self.violations,
            self.quota_violations,
        )
        return (ServeError, fields)

    @property
    def safe_to_move(self) -> bool:
        """Whether the request may be sent to another replica, if no output has been sent yet."""
        return self.reason in {Reason.REPLICA_LOST, Reason.DRAINING}


class OwnedElsewhere(Exception):  # noqa: N818 - nothing has failed
    """The request repeats one that another gateway answers. address: where that one gives its answer."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


def invalid(field_path: str, description: str) -> ServeError:
    """An INVALID_ARGUMENT error about one field. The description names the value and what is allowed."""
    return ServeError(Reason.INVALID_ARGUMENT, f"{field_path}: {description}", violations=(FieldViolation(field_path, description),))
