"""Quotas: no 60 s and no day exceed the limit, after any sequence of events."""

from collections import defaultdict
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.quota import DAY_S, MINUTE_S, QuotaLedger, QuotaState, Reservation, Spent
from neox_serve.core.tenancy.tenants import Quotas

NOON_S = 20_000 * DAY_S + DAY_S / 2


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


def ledger() -> QuotaLedger:
    return QuotaLedger(NoJitter())


def ask(book: QuotaLedger, number: int, tokens: int, quotas: Quotas, now_s: float, source: str = "g") -> ServeError | None:
    return book.reserve(source, Reservation(number, "acme", tokens), quotas, now_s)


def test_reservation_counts_in_full_until_it_is_settled() -> None:
    book, quotas = ledger(), Quotas(tokens_per_minute=100)
    assert ask(book, 1, 80, quotas, NOON_S) is None
    assert isinstance(ask(book, 2, 30, quotas, NOON_S), ServeError)
    book.settle("g", 1, 10, NOON_S)
    assert ask(book, 3, 90, quotas, NOON_S) is None
    assert book.state("acme", NOON_S) == QuotaState(2, 10, 10, 1, 90)


def test_use_is_forgotten_a_minute_after_it_and_the_retry_delay_says_when() -> None:
    book, quotas = ledger(), Quotas(tokens_per_minute=100)
    for number, tokens in ((1, 40), (2, 40)):
        assert ask(book, number, tokens, quotas, NOON_S + 10 * number) is None
        book.settle("g", number, tokens, NOON_S + 10 * number)
    refusal = ask(book, 3, 60, quotas, NOON_S + 30)
    assert refusal is not None
    assert refusal.reason is Reason.QUOTA_EXCEEDED
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s == pytest.approx(MINUTE_S - 20, abs=0.3)
    assert ask(book, 4, 60, quotas, NOON_S + 30 + refusal.retry_after_s - 0.3) is not None
    assert ask(book, 5, 60, quotas, NOON_S + 30 + refusal.retry_after_s) is None


def test_request_over_the_whole_quota_never_fits_and_gets_no_retry_delay() -> None:
    for quotas in (Quotas(tokens_per_minute=10), Quotas(tokens_per_day=10), Quotas(requests_per_minute=0), Quotas(concurrent_requests=0)):
        refusal = ask(ledger(), 1, 11, quotas, NOON_S)
        assert refusal is not None
        assert (refusal.reason, refusal.retry_after_s) == (Reason.REQUEST_NEVER_FITS, None)


def test_day_ends_at_midnight_utc() -> None:
    book, quotas = ledger(), Quotas(tokens_per_day=100)
    assert ask(book, 1, 100, quotas, NOON_S) is None
    book.settle("g", 1, 100, NOON_S)
    refusal = ask(book, 2, 1, quotas, NOON_S)
    assert refusal is not None
    assert refusal.retry_after_s == DAY_S / 2
    assert ask(book, 3, 100, quotas, NOON_S + DAY_S / 2) is None


def test_token_quota_without_a_token_left_is_used_up() -> None:
    book, quotas = ledger(), Quotas(tokens_per_minute=10, tokens_per_day=25, concurrent_requests=1)
    used = ((9, ()), (10, ("tokens_per_minute",)), (6, ("tokens_per_day",)))
    for number, (tokens, names) in enumerate(used):
        now_s = NOON_S + 2 * number * MINUTE_S
        assert book.used_up("acme", quotas, now_s) == ()
        assert ask(book, number, tokens, quotas, now_s) is None
        book.settle("g", number, tokens, now_s)
        assert book.used_up("acme", quotas, now_s) == names
    assert book.used_up("acme", quotas, NOON_S + DAY_S / 2) == book.used_up("other", quotas, NOON_S) == ()


def test_refusal_names_tenant_quota_and_counts() -> None:
    book, quotas = ledger(), Quotas(tokens_per_minute=1_000, concurrent_requests=1)
    assert ask(book, 1, 900, quotas, NOON_S) is None
    refusal = ask(book, 2, 200, quotas, NOON_S)
    assert refusal is not None
    assert [(one.subject, one.description) for one in refusal.quota_violations] == [
        ("tenant:acme", "tokens_per_minute: 1,000 allowed, 0 used, 900 reserved by running requests, 200 requested"),
        ("tenant:acme", "concurrent_requests: 1 allowed, 0 used, 1 reserved by running requests, 1 requested"),
    ]


def test_jitter_lengthens_retry_delays_by_at_most_a_tenth() -> None:
    quotas = Quotas(tokens_per_minute=10)
    book = QuotaLedger(Random(1))
    assert ask(book, 1, 10, quotas, NOON_S) is None
    book.settle("g", 1, 10, NOON_S)
    delays = [error.retry_after_s or 0.0 for number in range(50) if (error := ask(book, 10 + number, 10, quotas, NOON_S))]
    assert len(set(delays)) == 50
    assert MINUTE_S <= min(delays) <= max(delays) <= 1.1 * (MINUTE_S + 0.25)


def test_reservations_of_a_lost_gateway_count_as_used() -> None:
    book, quotas = ledger(), Quotas(tokens_per_minute=100)
    assert ask(book, 1, 80, quotas, NOON_S) is None
    book.drop_source("g", NOON_S)
    assert book.state("acme", NOON_S) == QuotaState(1, 80, 80, 0, 0)


def test_hello_of_every_gateway_restores_the_ledger() -> None:
    old, quotas = ledger(), Quotas(tokens_per_minute=1_000, tokens_per_day=10_000)
    for source in ("a", "b"):
        for number in (1, 2):
            assert ask(old, number, 100, quotas, NOON_S, source) is None
        old.settle(source, 1, 60, NOON_S)
    new = ledger()
    for source in ("a", "b", "a"):  # one of them says hello twice
        spent = [Spent("acme", NOON_S, 2, 60)]
        new.restore(source, [Reservation(2, "acme", 100)], spent, NOON_S + 1)
    assert new.state("acme", NOON_S + 1) == old.state("acme", NOON_S + 1) == QuotaState(4, 120, 120, 2, 200)


LIMITS = Quotas(requests_per_minute=6, tokens_per_minute=100, tokens_per_day=250, concurrent_requests=4)


class Quota(RuleBasedStateMachine):
    """Compares the ledger with lists of all past events."""

    open_ones = Bundle("open_ones")

    @initialize()
    def begin(self) -> None:
        self.now_s = NOON_S
        self.book = QuotaLedger(Random(0))
        self.began: list[float] = []
        self.used: list[tuple[float, int]] = []
        self.running: dict[tuple[str, int], int] = {}
        self.log: dict[str, list[Spent]] = defaultdict(list)
        self.number = 0

    @rule(target=open_ones, source=st.sampled_from("ab"), tokens=st.integers(0, 120))
    def reserve(self, source: str, tokens: int) -> Any:
        self.number += 1
        asked = Reservation(self.number, "acme", tokens)
        refusal = self.book.reserve(source, asked, LIMITS, self.now_s)
        if refusal is None:
            self.began.append(self.now_s)
            self.running[source, self.number] = tokens
            self.log[source].append(Spent("acme", self.now_s, 1, 0))
        else:
            assert not self.fits(tokens), "refused though there was room"
        return source, self.number

    @rule(which=consumes(open_ones), share=st.floats(0, 1))
    def settle(self, which: tuple[str, int], share: float) -> None:
        source, number = which
        tokens = self.running.pop(which, None)
        used = int((tokens or 0) * share)
        self.book.settle(source, number, used, self.now_s)
        if tokens is not None:
            self.used.append((self.now_s, used))
            self.log[source].append(Spent("acme", self.now_s, 0, used))

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def wait_for_tomorrow(self) -> None:
        self.now_s = (self.now_s // DAY_S + 1) * DAY_S

    @rule()
    def router_dies(self) -> None:
        self.book = QuotaLedger(Random(0))
        for source in "ab":
            mine = [Reservation(number, "acme", tokens) for (of, number), tokens in self.running.items() if of == source]
            self.book.restore(source, mine, self.log[source], self.now_s)

    def window(self, end_s: float) -> int:
        return sum(tokens for at_s, tokens in self.used if end_s - MINUTE_S < at_s <= end_s)

    def fits(self, tokens: int) -> bool:
        """Returns whether there is room by a simple count, with one slot of tolerance."""
        early_s = self.now_s - MINUTE_S - 0.5
        minute = sum(used for at_s, used in self.used if at_s > early_s)
        day = sum(used for at_s, used in self.used if at_s // DAY_S == self.now_s // DAY_S)
        reserved = sum(self.running.values())
        return (
            len(self.running) < 4
            and len([at_s for at_s in self.began if at_s > early_s]) < 6
            and minute + reserved + tokens <= 100
            and day + reserved + tokens <= 250
        )

    @invariant()
    def nothing_is_overshot(self) -> None:
        if not hasattr(self, "book"):
            return
        assert len(self.running) <= 4
        assert self.window(self.now_s) + sum(self.running.values()) <= 100
        assert len([at_s for at_s in self.began if at_s > self.now_s - MINUTE_S]) <= 6
        today = [used for at_s, used in self.used if at_s // DAY_S == self.now_s // DAY_S]
        assert sum(today) <= 250
        state = self.book.state("acme", self.now_s)
        assert (state.reserved_requests, state.reserved_tokens) == (len(self.running), sum(self.running.values()))
        assert state.day_tokens == sum(today)


TestQuota = Quota.TestCase
TestQuota.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
