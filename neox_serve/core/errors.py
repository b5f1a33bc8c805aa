"""Every error that can leave the system, and when to raise it.

There is one exception type and one table of reasons. Reasons are stable, so clients may branch on them. Only `neox_serve.wire.status` turns
an error into a gRPC status. For reason INTERNAL the client receives a generic text; the message goes to the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neox_serve.core.str_enum import StrEnum

DOMAIN = "neox-serve"
"""The value of ErrorInfo.domain."""


class Reason(StrEnum):
    """Why a request failed. The value is sent in ErrorInfo.reason."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    """A field has an invalid value. `violations` names it."""
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    """The prompt plus max_tokens exceeds the context length. Metadata: excess_tokens."""
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_ADAPTER = "UNKNOWN_ADAPTER"
    UNKNOWN_JOB = "UNKNOWN_JOB"
    BROKEN_ADAPTER = "BROKEN_ADAPTER"
    """The adapter's files are missing, damaged or made for another model."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    """A quota is used up for now. `retry_after_s` is set."""
    REQUEST_NEVER_FITS = "REQUEST_NEVER_FITS"
    """The request is larger than a quota. Retrying does not help."""
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    """The message exceeds the size limit."""
    OVERLOADED = "OVERLOADED"
    """All replicas are full, or the request would wait in the queue for too long."""
    NO_READY_REPLICA = "NO_READY_REPLICA"
    DRAINING = "DRAINING"
    """The process is shutting down and takes no new requests."""
    REPLICA_LOST = "REPLICA_LOST"
    """The replica died after output had been sent."""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ENGINE_FAILED = "ENGINE_FAILED"
    """The engine failed on this request."""
    INTERNAL = "INTERNAL"
    """An unforeseen error."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field of a request."""

    field: str
    """Path of the field, for example "parameters.sampling.top_p"."""
    description: str
    """What is wrong: the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One exhausted quota."""

    subject: str
    """Who the quota belongs to, for example "tenant:acme"."""
    description: str
    """Which quota it is, with its limit and what is used."""


@dataclass(slots=True)
class ServeError(Exception):
    """The error that every part of neox-serve raises for a failed request."""

    reason: Reason
    message: str
    """One sentence for people."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Machine-readable facts for ErrorInfo.metadata."""
    retry_after_s: float | None = None
    """Seconds after which a retry may succeed; None if retrying does not help."""
    violations: tuple[FieldViolation, ...] = ()
    """Set only with INVALID_ARGUMENT and PROMPT_TOO_LONG."""
    quota_violations: tuple[QuotaViolation, ...] = ()
    """Set only with QUOTA_EXCEEDED and REQUEST_NEVER_FITS."""

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
        """Whether the request may be sent to another replica, provided that no output has been sent yet."""
        return self.reason in {Reason.REPLICA_LOST, Reason.DRAINING}


class OwnedElsewhere(Exception):  # noqa: N818 - nothing has failed
    """Another gateway is already serving a request with the same idempotency key."""

    def __init__(self, address: str) -> None:
        """address: host:port at which the other gateway serves the response."""
        super().__init__(address)
        self.address = address


def invalid(field_path: str, description: str) -> ServeError:
    """Returns an INVALID_ARGUMENT error for one field. The description states the value and what is allowed."""
    return ServeError(Reason.INVALID_ARGUMENT, f"{field_path}: {description}", violations=(FieldViolation(field_path, description),))
