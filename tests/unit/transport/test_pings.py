"""Which pings and floods are too many, and when silence is: as timelines."""

import pytest

from neox_serve.transport.floods import Floods
from neox_serve.transport.keepalive import Check, Keepalive
from neox_serve.transport.pings import Pings


def test_pings_that_follow_each_other_are_soon_too_many() -> None:
    pings = Pings(4.5)
    assert [pings.too_many(float(second)) for second in range(5)] == [False, False, False, True, True]


def test_pings_at_the_allowed_pace_or_after_something_sent_are_never_too_many() -> None:
    slow, measuring = Pings(4.5), Pings(4.5)
    assert not any(slow.too_many(5.0 * number) for number in range(20))
    for number in range(20):
        measuring.sent()
        assert not measuring.too_many(0.1 * number)


def test_pings_after_strikes_are_forgiven_once_something_is_sent() -> None:
    pings = Pings(4.5)
    assert [pings.too_many(0.1 * number) for number in range(3)] == [False] * 3
    pings.sent()
    assert [pings.too_many(1.0 + 0.1 * number) for number in range(4)] == [False, False, False, True]


def test_floods_within_a_window_are_noticed_and_later_forgotten() -> None:
    floods = Floods()
    assert [floods.too_many(100.0) for _ in range(501)] == [False] * 500 + [True]
    assert floods.too_many(109.9)
    assert not floods.too_many(110.0)


@pytest.mark.parametrize(
    ("heard_before", "checks"),
    [
        ((False,), (Check.DROP,)),
        ((True, True, True), (Check.WAIT, Check.WAIT, Check.WAIT)),
        ((True, False, False), (Check.WAIT, Check.ASK, Check.DROP)),
        ((True, False, True, False), (Check.WAIT, Check.ASK, Check.WAIT, Check.ASK)),
    ],
    ids=["no hello", "talks", "falls silent", "answers"],
)
def test_keepalive_of_a_client_asks_before_it_drops(heard_before: tuple[bool, ...], checks: tuple[Check, ...]) -> None:
    keepalive, got = Keepalive(), []
    for heard in heard_before:
        if heard:
            keepalive.heard()
        got.append(keepalive.check())
    assert tuple(got) == checks
