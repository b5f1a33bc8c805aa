"""What each request used, as a chain of records: each carries a keyed hash over itself and the one before, so that a change shows."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

FIRST_HASH = "0" * 64
"""Stands before the first record of a chain."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One request of one tenant. at_us: its end, in microseconds since the epoch. Spans are in microseconds, 0 for what did not happen.

    outcome: OK, or the reason that ended it. replica_id: the one that served it, empty where none did.
    """

    request_id: str
    tenant: str
    method: str
    model: str
    adapter: str
    replica_id: str
    outcome: str
    at_us: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    admission_us: int
    first_token_us: int
    total_us: int

    @property
    def tokens(self) -> int:
        """What counts against token quotas."""
        return self.prompt_tokens + self.completion_tokens


FIELDS = tuple(field.name for field in fields(UsageRecord))


@dataclass(frozen=True, slots=True)
class ChainedRecord:
    """A record in its place. chain: one a gateway's life, so that gateways need not wait for each other. sequence: from 1."""

    chain: str
    sequence: int
    record: UsageRecord
    hash: str


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """Where a chain is not what was written."""

    chain: str
    sequence: int
    what: str


def link(secret: bytes, previous_hash: str, chain: str, sequence: int, record: UsageRecord) -> str:
    """The hash of a record in its place: HMAC-SHA-256 in hexadecimal."""
    text = "\x1f".join(str(part) for part in (previous_hash, chain, sequence, *astuple(record)))
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


class Chain:
    """The growing end of one chain."""

    def __init__(self, secret: bytes, name: str) -> None:
        self._secret, self.name = secret, name
        self._last = FIRST_HASH
        self._sequence = 0

    def append(self, record: UsageRecord) -> ChainedRecord:
        """The record with its place and its hash."""
        self._sequence += 1
        self._last = link(self._secret, self._last, self.name, self._sequence, record)
        return ChainedRecord(self.name, self._sequence, record, self._last)


def verify(secret: bytes, chained: Iterable[ChainedRecord], heads: Iterable[tuple[str, int, str]]) -> list[ChainBreak]:
    """All breaks, one a chain at most. chained: in order within each chain. heads: each chain's name, length and last hash."""
    ends: dict[str, tuple[int, str]] = {}
    breaks: dict[str, ChainBreak] = {}
    for entry in chained:
        sequence, previous = ends.get(entry.chain, (0, FIRST_HASH))
        if entry.sequence != sequence + 1:
            breaks.setdefault(entry.chain, ChainBreak(entry.chain, sequence + 1, "a record is missing"))
        elif not hmac.compare_digest(entry.hash, link(secret, previous, entry.chain, entry.sequence, entry.record)):
            breaks.setdefault(entry.chain, ChainBreak(entry.chain, entry.sequence, "a record was changed"))
        ends[entry.chain] = (entry.sequence, entry.hash)
    for chain, length, last_hash in heads:
        if ends.get(chain, (0, FIRST_HASH)) != (length, last_hash):
            breaks.setdefault(chain, ChainBreak(chain, length, "the chain does not end where it was noted to end"))
    return list(breaks.values())
