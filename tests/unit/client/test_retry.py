"""When the client repeats a failed call: failures and the waits that follow them."""

import pytest

from neox_serve.client.retry import UNREACHABLE, Attempts, RetryPolicy
from neox_serve.core.errors import Reason, ServeError

OVERLOADED = ServeError(Reason.OVERLOADED, "busy", retry_after_s=2.0)
UNREACHED = ServeError(Reason.NO_READY_REPLICA, "refused", metadata={UNREACHABLE: "host:1"})


def test_retry_of_unavailable_waits_the_servers_delay_until_attempts_run_out() -> None:
    attempts = Attempts.starting(RetryPolicy(max_attempts=3), None, now_s=0.0)
    assert [attempts.delay_s(OVERLOADED, now_s=0.0) for _ in range(3)] == [2.0, 2.0, None]


@pytest.mark.parametrize(
    "error",
    [
        ServeError(Reason.OVERLOADED, "no delay given"),
        ServeError(Reason.INVALID_ARGUMENT, "never", retry_after_s=0.1),
        ServeError(Reason.QUOTA_EXCEEDED, "left to the caller", retry_after_s=0.1),
        ServeError(Reason.DEADLINE_EXCEEDED, "over"),
        ServeError(Reason.OVERLOADED, "too long", retry_after_s=31.0),
        UNREACHED,
    ],
)
def test_other_errors_are_not_retried(error: ServeError) -> None:
    assert Attempts.starting(RetryPolicy(), None, now_s=0.0).delay_s(error, now_s=0.0) is None


def test_retry_past_the_deadline_is_not_made() -> None:
    attempts = Attempts.starting(RetryPolicy(), timeout_s=5.0, now_s=100.0)
    assert attempts.delay_s(OVERLOADED, now_s=102.0) == 2.0
    assert attempts.time_left_s(now_s=104.0) == 1.0
    assert attempts.delay_s(OVERLOADED, now_s=104.0) is None
    assert attempts.time_left_s(now_s=106.0) == 0.0


def test_unreachable_server_is_retried_only_if_the_policy_says_so() -> None:
    attempts = Attempts.starting(RetryPolicy(max_attempts=2, unreachable_delay_s=0.5), None, now_s=0.0)
    assert [attempts.delay_s(UNREACHED, now_s=0.0) for _ in range(2)] == [0.5, None]


def test_policy_with_zero_attempts_is_refused() -> None:
    with pytest.raises(ValueError, match="max_attempts: 0 is invalid"):
        RetryPolicy(max_attempts=0)
