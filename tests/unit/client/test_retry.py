"""When the client tries again: timelines of failures and the waits they lead to."""

import pytest

from neox_serve.client.retry import UNREACHABLE, Attempts, RetryPolicy
from neox_serve.core.errors import Reason, ServeError

OVERLOADED = ServeError(Reason.OVERLOADED, "busy", retry_after_s=2.0)
UNREACHED = ServeError(Reason.NO_READY_REPLICA, "refused", metadata={UNREACHABLE: "host:1"})


def test_retry_unavailable_with_a_delay_waits_that_long_until_attempts_are_used_up() -> None:
    attempts = Attempts.starting(RetryPolicy(attempts=3), None, now_s=0.0)
    assert [attempts.delay_s(OVERLOADED, now_s=0.0) for _ in range(3)] == [2.0, 2.0, None]


@pytest.mark.parametrize(
    "error",
    [
        ServeError(Reason.OVERLOADED, "no hint when"),
        ServeError(Reason.INVALID_ARGUMENT, "never", retry_after_s=0.1),
        ServeError(Reason.QUOTA_EXCEEDED, "the caller's own choice", retry_after_s=0.1),
        ServeError(Reason.DEADLINE_EXCEEDED, "over"),
        ServeError(Reason.OVERLOADED, "too long", retry_after_s=31.0),
        UNREACHED,
    ],
)
def test_retry_of_other_errors_does_not_happen(error: ServeError) -> None:
    assert Attempts.starting(RetryPolicy(), None, now_s=0.0).delay_s(error, now_s=0.0) is None


def test_retry_that_would_pass_the_deadline_does_not_happen() -> None:
    attempts = Attempts.starting(RetryPolicy(), timeout_s=5.0, now_s=100.0)
    assert attempts.delay_s(OVERLOADED, now_s=102.0) == 2.0
    assert attempts.time_left_s(now_s=104.0) == 1.0
    assert attempts.delay_s(OVERLOADED, now_s=104.0) is None
    assert attempts.time_left_s(now_s=106.0) == 0.0


def test_retry_of_an_unreachable_server_is_the_policys_choice() -> None:
    attempts = Attempts.starting(RetryPolicy(attempts=2, unreachable_delay_s=0.5), None, now_s=0.0)
    assert [attempts.delay_s(UNREACHED, now_s=0.0) for _ in range(2)] == [0.5, None]


def test_policy_without_attempts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RetryPolicy(attempts=0)
