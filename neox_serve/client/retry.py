"""When a failed call is repeated. Pure: the clock is an argument, and the clients do the waiting."""

from dataclasses import dataclass, field

from typing_extensions import Self

from neox_serve.core.errors import Reason, ServeError

_RETRIABLE_REASONS = frozenset({Reason.OVERLOADED, Reason.NO_READY_REPLICA, Reason.DRAINING, Reason.REPLICA_LOST})
"""The reasons that gRPC status UNAVAILABLE stands for."""

UNREACHABLE = "unreachable"
"""Metadata key of a ServeError that did not come from the service. Its value is the address that could not be reached."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often the client repeats a failed call, and how long it waits."""

    max_attempts: int = 4
    """Attempts per call, including the first; at least 1."""
    max_wait_s: float = 30.0
    """Longest wait before an attempt. If the server names a longer delay, the call fails at once."""
    unreachable_delay_s: float | None = None
    """Seconds to wait before repeating a call whose gateway was unreachable or whose connection broke; None: such a call fails."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: {self.max_attempts} is invalid; it must be at least 1")


@dataclass(slots=True)
class Attempts:
    """The attempts of one call."""

    policy: RetryPolicy
    deadline_s: float | None
    """When the call must end, on the caller's monotonic clock; None: no deadline."""
    failures: int = field(default=0, init=False)
    """Attempts that have failed."""

    @classmethod
    def starting(cls, policy: RetryPolicy, timeout_s: float | None, now_s: float) -> Self:
        """The attempts of a call that starts now and may take `timeout_s` in all."""
        return cls(policy, None if timeout_s is None else now_s + timeout_s)

    def time_left_s(self, now_s: float) -> float | None:
        """Seconds left for the next attempt, at least 0; None: no limit."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - now_s)

    def delay_s(self, error: ServeError, now_s: float) -> float | None:
        """Counts a failure. Returns the seconds to wait before the next attempt, or None if the call has failed for good."""
        self.failures += 1
        wait_s = self._server_delay_s(error)
        if wait_s is None or self.failures >= self.policy.max_attempts or wait_s > self.policy.max_wait_s:
            return None
        if self.deadline_s is not None and now_s + wait_s >= self.deadline_s:
            return None
        return wait_s

    def watching_delay_s(self, error: ServeError, now_s: float) -> float | None:
        """As `delay_s`, for a call that only watches. If it has no deadline, the server's own time limit ends it; that is not a failure."""
        if error.reason is Reason.DEADLINE_EXCEEDED and self.deadline_s is None:
            return 0.0
        return self.delay_s(error, now_s)

    def _server_delay_s(self, error: ServeError) -> float | None:
        if UNREACHABLE in error.metadata:
            return self.policy.unreachable_delay_s
        return error.retry_after_s if error.reason in _RETRIABLE_REASONS else None
