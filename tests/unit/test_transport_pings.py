"""Which pings are too many, as timelines."""

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
