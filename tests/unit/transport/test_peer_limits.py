"""Limits of control frames, PINGs and silence, as timelines."""

import pytest

from neox_serve.transport.peer_limits import ControlFrameLimit, Keepalive, KeepaliveAction, PingLimit

WAIT, PING, DROP = KeepaliveAction.WAIT, KeepaliveAction.PING, KeepaliveAction.DROP


def test_ping_limit_third_early_ping_exceeds_it() -> None:
    limit = PingLimit(4.5)
    assert [limit.exceeded_by_ping(float(second)) for second in range(5)] == [False, False, False, True, True]


def test_ping_limit_pings_at_the_allowed_interval_or_after_data_never_exceed_it() -> None:
    slow, measuring = PingLimit(4.5), PingLimit(4.5)
    assert not any(slow.exceeded_by_ping(5.0 * number) for number in range(20))
    for number in range(20):
        measuring.data_sent()
        assert not measuring.exceeded_by_ping(0.1 * number)


def test_ping_limit_strikes_are_forgiven_once_data_is_sent() -> None:
    limit = PingLimit(4.5)
    assert [limit.exceeded_by_ping(0.1 * number) for number in range(3)] == [False] * 3
    limit.data_sent()
    assert [limit.exceeded_by_ping(1.0 + 0.1 * number) for number in range(4)] == [False, False, False, True]


def test_control_frame_limit_counts_within_a_window_and_starts_again_after_it() -> None:
    limit = ControlFrameLimit()
    assert [limit.exceeded_by_frame(100.0) for _ in range(501)] == [False] * 500 + [True]
    assert limit.exceeded_by_frame(109.9)
    assert not limit.exceeded_by_frame(110.0)


@pytest.mark.parametrize(
    ("received_before", "actions"),
    [
        ((False,), (DROP,)),
        ((True, True, True), (WAIT, WAIT, WAIT)),
        ((True, False, False), (WAIT, PING, DROP)),
        ((True, False, True, False), (WAIT, PING, WAIT, PING)),
    ],
    ids=["no preface", "active", "falls silent", "answers the ping"],
)
def test_keepalive_sends_a_ping_before_it_drops(received_before: tuple[bool, ...], actions: tuple[KeepaliveAction, ...]) -> None:
    keepalive, got = Keepalive(), []
    for received in received_before:
        if received:
            keepalive.data_received()
        got.append(keepalive.check())
    assert tuple(got) == actions
