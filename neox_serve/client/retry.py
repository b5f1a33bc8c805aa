"""When a failed call is tried again. Pure: the clock is an argument, the clients do the waiting."""

from dataclasses import dataclass, field

from typing_extensions import Self

from neox_serve.core.errors import Reason, ServeError

_WORTH_RETRYING = frozenset({Reason.OVERLOADED, Reason.NO_READY_REPLICA, Reason.DRAINING, Reason.REPLICA_LOST})
"""The reasons that travel as UNAVAILABLE."""

UNREACHABLE = "unreachable"
"""Key of a ServeError's metadata whose value is the address that could not be reached; such an error never came from the service."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and for how long, the client tries again by itself.

    attempts: tries in all, the first included. longest_wait_s: a server that asks for more patience than this gets none.
    unreachable_delay_s: seconds before trying again where the server could not be reached at all, or the connection broke; None: not tried.
    """

    attempts: int = 4
    longest_wait_s: float = 30.0
    unreachable_delay_s: float | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")


@dataclass(slots=True)
class Attempts:
    """The tries of one call. deadline_s: on the caller's monotonic clock; None: no end."""

    policy: RetryPolicy
    deadline_s: float | None
    failures: int = field(default=0, init=False)

    @classmethod
    def starting(cls, policy: RetryPolicy, timeout_s: float | None, now_s: float) -> Self:
        """The tries of a call that starts now and may take `timeout_s` in all."""
        return cls(policy, None if timeout_s is None else now_s + timeout_s)

    def time_left_s(self, now_s: float) -> float | None:
        """What is left of the call's time for the next try, at least 0; None: no limit."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - now_s)

    def delay_s(self, error: ServeError, now_s: float) -> float | None:
        """Counts the failure. Returns the seconds to wait before the next try, or None: the error stands."""
        self.failures += 1
        wait_s = self._wait_asked_for_s(error)
        if wait_s is None or self.failures >= self.policy.attempts or wait_s > self.policy.longest_wait_s:
            return None
        if self.deadline_s is not None and now_s + wait_s >= self.deadline_s:
            return None
        return wait_s

    def watching_delay_s(self, error: ServeError, now_s: float) -> float | None:
        """The same for a call that only looks on: the server's limit on calls without one is no failure, and it is called again."""
        if error.reason is Reason.DEADLINE_EXCEEDED and self.deadline_s is None:
            return 0.0
        return self.delay_s(error, now_s)

    def _wait_asked_for_s(self, error: ServeError) -> float | None:
        if UNREACHABLE in error.metadata:
            return self.policy.unreachable_delay_s
        return error.retry_after_s if error.reason in _WORTH_RETRYING else None
