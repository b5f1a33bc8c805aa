"""Quotas that cannot be overshot: what a request may use at most is reserved before it runs, and settled to what it used.

Theory of operation: a minute is any 60 s, so the ledger keeps what was used in the last 60 s and never lets that, plus all reservations,
plus what is asked, exceed the limit. Then no 60 s hold more than the limit: whatever runs within them was reserved, or had been settled,
at the moment of the last admission in them. What is used counts from the moment of its settlement, which is its latest possible one.

All that a gateway reported is kept under its name (the source), so that after a router's crash each gateway's hello restores its part, and
a hello that comes again replaces it. Times are seconds since the epoch, and never go back.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

from neox_serve.core.errors import QuotaViolation, Reason, ServeError
from neox_serve.core.tenancy.tenants import Quotas

MINUTE_S = 60.0
DAY_S = 86_400.0
SLOT_S = 0.25
"""What is used within one slot is kept as one entry, which counts until the slot's end is a minute ago."""
RUNNING_RETRY_S = 1.0
"""Where running requests must end before there is room, and nothing is known of how long they take."""
MAX_JITTER_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Reservation:
    """The most that one call may still use. reservation_id: unique for its source's life."""

    reservation_id: int
    tenant: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used at some moment. requests: calls that began then; tokens: of calls that ended then."""

    tenant: str
    at_s: float
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class QuotaState:
    """What counts against a tenant's quotas now."""

    minute_requests: int
    minute_tokens: int
    day_tokens: int
    reserved_requests: int
    reserved_tokens: int


class Minute:
    """What one source used of one tenant's in the last minute, in slots, oldest first."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, int, int]] = deque()
        self.requests = 0
        self.tokens = 0

    def add(self, at_s: float, requests: int, tokens: int) -> None:
        """Notes a use; moments come in order, and one before the last counts as at the last."""
        slot = int(at_s / SLOT_S)
        if self._slots and self._slots[-1][0] >= slot:
            last, before_requests, before_tokens = self._slots.pop()
            self._slots.append((last, before_requests + requests, before_tokens + tokens))
        else:
            self._slots.append((slot, requests, tokens))
        self.requests += requests
        self.tokens += tokens

    def expire(self, now_s: float) -> None:
        """Forgets what was over a minute ago."""
        while self._slots and _ends_s(self._slots[0][0]) <= now_s:
            _, requests, tokens = self._slots.popleft()
            self.requests -= requests
            self.tokens -= tokens

    def spent(self, tenant: str) -> Iterator[Spent]:
        """The entries as what the tenant used."""
        for slot, requests, tokens in self._slots:
            yield Spent(tenant, slot * SLOT_S, requests, tokens)

    def entries(self) -> Iterator[tuple[float, int, int]]:
        """When each entry stops counting, its requests and its tokens."""
        for slot, requests, tokens in self._slots:
            yield _ends_s(slot), requests, tokens


def _ends_s(slot: int) -> float:
    return (slot + 1) * SLOT_S + MINUTE_S


@dataclass(slots=True)
class _Account:
    """One tenant, by source."""

    minutes: dict[str, Minute] = field(default_factory=dict)
    day: int = 0
    day_tokens: dict[str, int] = field(default_factory=dict)
    reserved_requests: int = 0
    reserved_tokens: int = 0

    def at(self, now_s: float) -> "_Account":
        """The account, with all that no longer counts forgotten."""
        for minute in self.minutes.values():
            minute.expire(now_s)
        today = day_of(now_s)
        if today != self.day:
            self.day, self.day_tokens = today, {}
        return self

    def state(self) -> QuotaState:
        minutes = self.minutes.values()
        return QuotaState(
            sum(minute.requests for minute in minutes),
            sum(minute.tokens for minute in minutes),
            sum(self.day_tokens.values()),
            self.reserved_requests,
            self.reserved_tokens,
        )


class QuotaLedger:
    """All tenants' uses and reservations. rng: for the jitter of retry delays."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._accounts: dict[str, _Account] = {}
        self._reservations: dict[str, dict[int, Reservation]] = {}

    def reserve(self, source: str, asked: Reservation, quotas: Quotas, now_s: float) -> ServeError | None:
        """Reserves, or says why not: QUOTA_EXCEEDED, REQUEST_NEVER_FITS. A reservation that is there already is left as it is."""
        if asked.reservation_id in self._reservations.get(source, {}):
            return None
        account = self._account(asked.tenant, now_s)
        if (refusal := self._refusal(asked, quotas, account, now_s)) is not None:
            return refusal
        self._enter(source, asked)
        self._minute(account, source).add(now_s, 1, 0)
        return None

    def settle(self, source: str, reservation_id: int, used_tokens: int, now_s: float) -> None:
        """The reservation's call has ended and used so much; one that is not there is ignored."""
        ended = self._reservations.get(source, {}).pop(reservation_id, None)
        if ended is None:
            return
        account = self._account(ended.tenant, now_s)
        account.reserved_requests -= 1
        account.reserved_tokens -= ended.tokens
        self._use(account, source, now_s, 0, used_tokens)

    def restore(self, source: str, reservations: Iterable[Reservation], spent: Iterable[Spent], now_s: float) -> None:
        """Makes these the reservations and uses (of the last minute, and of this day, in order) of a source, instead of all it had."""
        self._forget(source)
        for entry in spent:
            account = self._account(entry.tenant, now_s)
            self._use(account, source, min(entry.at_s, now_s), entry.requests, entry.tokens)
            account.at(now_s)
        for reservation in reservations:
            self._enter(source, reservation)

    def drop_source(self, source: str, now_s: float) -> None:
        """The source is gone for good. Its reservations count as used in full: nobody knows better."""
        for reservation in tuple(self._reservations.get(source, {}).values()):
            self.settle(source, reservation.reservation_id, reservation.tokens, now_s)
        self._reservations.pop(source, None)

    def state(self, tenant: str, now_s: float) -> QuotaState:
        """What counts against a tenant's quotas now."""
        return self._account(tenant, now_s).state()

    def used_up(self, tenant: str, quotas: Quotas, now_s: float) -> tuple[str, ...]:
        """The names of a tenant's quotas of tokens that hold not one more now."""
        limits = _limits(quotas, self.state(tenant, now_s), 1)
        return tuple(limit.name for limit in limits if limit.excess > 0 and limit.name in _OF_TOKENS)

    def reservations(self, source: str) -> tuple[Reservation, ...]:
        """What a source has reserved."""
        return tuple(self._reservations.get(source, {}).values())

    def _account(self, tenant: str, now_s: float) -> _Account:
        return self._accounts.setdefault(tenant, _Account(day=day_of(now_s))).at(now_s)

    def _enter(self, source: str, reservation: Reservation) -> None:
        self._reservations.setdefault(source, {})[reservation.reservation_id] = reservation
        account = self._accounts.setdefault(reservation.tenant, _Account())
        account.reserved_requests += 1
        account.reserved_tokens += reservation.tokens

    def _use(self, account: _Account, source: str, at_s: float, requests: int, tokens: int) -> None:
        self._minute(account, source).add(at_s, requests, tokens)
        if day_of(at_s) == account.day:
            account.day_tokens[source] = account.day_tokens.get(source, 0) + tokens

    def _minute(self, account: _Account, source: str) -> Minute:
        return account.minutes.setdefault(source, Minute())

    def _forget(self, source: str) -> None:
        for reservation in self._reservations.pop(source, {}).values():
            account = self._accounts[reservation.tenant]
            account.reserved_requests -= 1
            account.reserved_tokens -= reservation.tokens
        for account in self._accounts.values():
            account.minutes.pop(source, None)
            account.day_tokens.pop(source, None)

    # Refusals

    def _refusal(self, asked: Reservation, quotas: Quotas, account: _Account, now_s: float) -> ServeError | None:
        never = [limit for limit in _limits(quotas, account.state(), asked.tokens) if limit.asked > limit.allowed]
        if never:
            return _refused(Reason.REQUEST_NEVER_FITS, asked.tenant, never, None)
        full = [limit for limit in _limits(quotas, account.state(), asked.tokens) if limit.excess > 0]
        if not full:
            return None
        wait_s = max(_wait_s(limit, account, now_s) for limit in full)
        return _refused(Reason.QUOTA_EXCEEDED, asked.tenant, full, wait_s * (1 + MAX_JITTER_FRACTION * self._rng.random()))


@dataclass(frozen=True, slots=True)
class _Limit:
    """One quota, with what counts against it."""

    name: str
    allowed: int
    used: int
    reserved: int
    asked: int

    @property
    def excess(self) -> int:
        return self.used + self.reserved + self.asked - self.allowed


_OF_TOKENS = frozenset({"tokens_per_minute", "tokens_per_day"})


def _limits(quotas: Quotas, state: QuotaState, tokens: int) -> list[_Limit]:
    every = (
        ("requests_per_minute", quotas.requests_per_minute, state.minute_requests, 0, 1),
        ("tokens_per_minute", quotas.tokens_per_minute, state.minute_tokens, state.reserved_tokens, tokens),
        ("tokens_per_day", quotas.tokens_per_day, state.day_tokens, state.reserved_tokens, tokens),
        ("concurrent_requests", quotas.concurrent_requests, 0, state.reserved_requests, 1),
    )
    return [_Limit(name, allowed, *counts) for name, allowed, *counts in every if allowed is not None]


def _wait_s(limit: _Limit, account: _Account, now_s: float) -> float:
    """How long until the quota holds what is asked, if running requests use all they reserved."""
    if limit.name == "concurrent_requests" or limit.reserved + limit.asked > limit.allowed:
        return RUNNING_RETRY_S
    if limit.name == "tokens_per_day":
        return (account.day + 1) * DAY_S - now_s
    place = 1 if limit.name == "requests_per_minute" else 2
    freed = 0
    for entry in sorted(entry for minute in account.minutes.values() for entry in minute.entries()):
        freed += int(entry[place])
        if freed >= limit.excess:
            return entry[0] - now_s
    return RUNNING_RETRY_S


def _refused(reason: Reason, tenant: str, limits: list[_Limit], retry_after_s: float | None) -> ServeError:
    violations = tuple(
        QuotaViolation(
            f"tenant:{tenant}",
            f"{limit.name}: {limit.allowed:,} allowed, {limit.used:,} used, {limit.reserved:,} reserved by running requests, "
            f"{limit.asked:,} asked",
        )
        for limit in limits
    )
    names = ", ".join(limit.name for limit in limits)
    said = f"the request is more than {names} ever allows" if reason is Reason.REQUEST_NEVER_FITS else f"{names} is used up"
    return ServeError(reason, said, {"quotas": names}, retry_after_s, quota_violations=violations)


def day_of(now_s: float) -> int:
    """Days since the epoch, UTC."""
    return int(now_s // DAY_S)
