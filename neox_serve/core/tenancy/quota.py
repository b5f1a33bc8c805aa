"""Quotas that cannot be exceeded: the maximum that a request may use is reserved before it runs and settled to what it used.

Theory of operation: a minute is any 60 s. The ledger keeps the use of the last 60 s and never lets that use, plus all reservations, plus
the new request exceed the limit. Then no interval of 60 s holds more than the limit: everything that ran within it was reserved, or had
been settled, at the last admission within it. Use counts from the moment of settlement, which is the latest moment it can have happened.

Everything that a gateway reported is stored under the gateway's name (the source). After a crash of the router, the hello message of each
gateway restores that gateway's part, and a repeated hello replaces it. Times are seconds since the epoch and never go back.
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
"""Uses within one slot are stored as one entry, which counts until a minute after the end of the slot."""
RUNNING_RETRY_S = 1.0
"""Retry delay if running requests must end first, since their remaining time is unknown."""
MAX_JITTER_FRACTION = 0.1
"""Retry delays are lengthened at random by up to this fraction, so that clients do not retry together."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The maximum that one running call may use."""

    reservation_id: int
    """Unique for the lifetime of its source."""
    tenant: str
    tokens: int
    """Prompt plus maximum output tokens."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Use at one moment."""

    tenant: str
    at_s: float
    requests: int
    """Calls that started then."""
    tokens: int
    """Tokens of calls that ended then."""


@dataclass(frozen=True, slots=True)
class QuotaState:
    """What currently counts against a tenant's quotas."""

    minute_requests: int
    minute_tokens: int
    day_tokens: int
    reserved_requests: int
    reserved_tokens: int


class Minute:
    """One source's use of one tenant's quotas in the last minute, in slots, oldest first."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, int, int]] = deque()
        self.requests = 0
        self.tokens = 0

    def add(self, at_s: float, requests: int, tokens: int) -> None:
        """Adds a use. Uses are expected in order; one that is earlier than the last slot counts in the last slot."""
        slot = int(at_s / SLOT_S)
        if self._slots and self._slots[-1][0] >= slot:
            last, before_requests, before_tokens = self._slots.pop()
            self._slots.append((last, before_requests + requests, before_tokens + tokens))
        else:
            self._slots.append((slot, requests, tokens))
        self.requests += requests
        self.tokens += tokens

    def expire(self, now_s: float) -> None:
        """Drops uses that ended more than a minute ago."""
        while self._slots and _ends_s(self._slots[0][0]) <= now_s:
            _, requests, tokens = self._slots.popleft()
            self.requests -= requests
            self.tokens -= tokens

    def spent(self, tenant: str) -> Iterator[Spent]:
        """Yields the entries as uses of the tenant."""
        for slot, requests, tokens in self._slots:
            yield Spent(tenant, slot * SLOT_S, requests, tokens)

    def entries(self) -> Iterator[tuple[float, int, int]]:
        """Yields for each entry the time at which it stops counting, its requests and its tokens."""
        for slot, requests, tokens in self._slots:
            yield _ends_s(slot), requests, tokens


def _ends_s(slot: int) -> float:
    return (slot + 1) * SLOT_S + MINUTE_S


@dataclass(slots=True)
class _Account:
    """The uses and reservations of one tenant, by source."""

    minutes: dict[str, Minute] = field(default_factory=dict)
    day: int = 0
    day_tokens: dict[str, int] = field(default_factory=dict)
    reserved_requests: int = 0
    reserved_tokens: int = 0

    def at(self, now_s: float) -> "_Account":
        """Returns the account after dropping everything that no longer counts."""
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
    """The uses and reservations of all tenants."""

    def __init__(self, rng: Random) -> None:
        """rng: source of the jitter of retry delays."""
        self._rng = rng
        self._accounts: dict[str, _Account] = {}
        self._reservations: dict[str, dict[int, Reservation]] = {}

    def reserve(self, source: str, requested: Reservation, quotas: Quotas, now_s: float) -> ServeError | None:
        """Makes a reservation. Returns QUOTA_EXCEEDED or REQUEST_NEVER_FITS if a quota does not allow it.

        Does nothing if the source already has a reservation with this id.
        """
        if requested.reservation_id in self._reservations.get(source, {}):
            return None
        account = self._account(requested.tenant, now_s)
        if (refusal := self._refusal(requested, quotas, account, now_s)) is not None:
            return refusal
        self._enter(source, requested)
        self._minute(account, source).add(now_s, 1, 0)
        return None

    def settle(self, source: str, reservation_id: int, used_tokens: int, now_s: float) -> None:
        """Ends a reservation and counts the tokens that its call used. Does nothing if there is no such reservation."""
        ended = self._reservations.get(source, {}).pop(reservation_id, None)
        if ended is None:
            return
        account = self._account(ended.tenant, now_s)
        account.reserved_requests -= 1
        account.reserved_tokens -= ended.tokens
        self._use(account, source, now_s, 0, used_tokens)

    def restore(self, source: str, reservations: Iterable[Reservation], spent: Iterable[Spent], now_s: float) -> None:
        """Replaces all reservations and uses of a source. spent: its uses of the last minute and of this day, in order."""
        self._forget(source)
        for entry in spent:
            account = self._account(entry.tenant, now_s)
            self._use(account, source, min(entry.at_s, now_s), entry.requests, entry.tokens)
            account.at(now_s)
        for reservation in reservations:
            self._enter(source, reservation)

    def drop_source(self, source: str, now_s: float) -> None:
        """Removes a source that will not return. Its reservations count as fully used, because the actual use is unknown."""
        for reservation in tuple(self._reservations.get(source, {}).values()):
            self.settle(source, reservation.reservation_id, reservation.tokens, now_s)
        self._reservations.pop(source, None)

    def state(self, tenant: str, now_s: float) -> QuotaState:
        """Returns what currently counts against a tenant's quotas."""
        return self._account(tenant, now_s).state()

    def used_up(self, tenant: str, quotas: Quotas, now_s: float) -> tuple[str, ...]:
        """Returns the names of the tenant's token quotas that have no token left."""
        limits = _limits(quotas, self.state(tenant, now_s), 1)
        return tuple(limit.name for limit in limits if limit.excess > 0 and limit.name in _TOKEN_QUOTAS)

    def reservations(self, source: str) -> tuple[Reservation, ...]:
        """Returns the reservations of a source."""
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

    def _refusal(self, requested: Reservation, quotas: Quotas, account: _Account, now_s: float) -> ServeError | None:
        never = [limit for limit in _limits(quotas, account.state(), requested.tokens) if limit.requested > limit.allowed]
        if never:
            return _refused(Reason.REQUEST_NEVER_FITS, requested.tenant, never, None)
        full = [limit for limit in _limits(quotas, account.state(), requested.tokens) if limit.excess > 0]
        if not full:
            return None
        wait_s = max(_wait_s(limit, account, now_s) for limit in full)
        return _refused(Reason.QUOTA_EXCEEDED, requested.tenant, full, wait_s * (1 + MAX_JITTER_FRACTION * self._rng.random()))


@dataclass(frozen=True, slots=True)
class _Limit:
    """One quota and what counts against it."""

    name: str
    allowed: int
    used: int
    reserved: int
    requested: int

    @property
    def excess(self) -> int:
        return self.used + self.reserved + self.requested - self.allowed


_TOKEN_QUOTAS = frozenset({"tokens_per_minute", "tokens_per_day"})


def _limits(quotas: Quotas, state: QuotaState, tokens: int) -> list[_Limit]:
    quotas_and_counts = (
        ("requests_per_minute", quotas.requests_per_minute, state.minute_requests, 0, 1),
        ("tokens_per_minute", quotas.tokens_per_minute, state.minute_tokens, state.reserved_tokens, tokens),
        ("tokens_per_day", quotas.tokens_per_day, state.day_tokens, state.reserved_tokens, tokens),
        ("concurrent_requests", quotas.concurrent_requests, 0, state.reserved_requests, 1),
    )
    return [_Limit(name, allowed, *counts) for name, allowed, *counts in quotas_and_counts if allowed is not None]


def _wait_s(limit: _Limit, account: _Account, now_s: float) -> float:
    """Returns how long until the quota has room for the request if running requests use all that they reserved."""
    if limit.name == "concurrent_requests" or limit.reserved + limit.requested > limit.allowed:
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
            f"{limit.requested:,} requested",
        )
        for limit in limits
    )
    names = ", ".join(limit.name for limit in limits)
    never = reason is Reason.REQUEST_NEVER_FITS
    message = f"the request exceeds the limit of {names}; no retry can succeed" if never else f"quota used up: {names}"
    return ServeError(reason, message, {"quotas": names}, retry_after_s, quota_violations=violations)


def day_of(now_s: float) -> int:
    """Returns the number of days since the epoch, in UTC."""
    return int(now_s // DAY_S)
