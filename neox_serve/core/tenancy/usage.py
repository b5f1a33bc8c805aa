"""Usage records of requests, chained by keyed hashes so that tampering is detected.

Each record carries an HMAC over its own content and the hash of the record before it.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

FIRST_HASH = "0" * 64
"""Previous hash of the first record in a chain."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """The use of one request. Times are in microseconds; a duration is 0 if the phase did not happen."""

    request_id: str
    tenant: str
    method: str
    model: str
    adapter: str
    """Empty if the request used none."""
    replica_id: str
    """The replica that served the request; empty if none did."""
    outcome: str
    """OK, or the reason of the error."""
    at_us: int
    """When the request ended, since the epoch."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    admission_us: int
    """How long the request waited for a replica."""
    first_token_us: int
    """Time to the first token."""
    total_us: int

    @property
    def tokens(self) -> int:
        """Tokens that count against token quotas."""
        return self.prompt_tokens + self.completion_tokens


FIELDS = tuple(field.name for field in fields(UsageRecord))
"""Names of a record's fields, in order."""


@dataclass(frozen=True, slots=True)
class ChainedRecord:
    """A record at its position in a chain."""

    chain: str
    """Name of the chain. Each gateway process has its own, so that gateways need not wait for each other."""
    sequence: int
    """Position in the chain, from 1."""
    record: UsageRecord
    hash: str
    """HMAC over the record, its position and the previous hash."""


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """A position at which a chain differs from what was written."""

    chain: str
    sequence: int
    what: str
    """What is wrong, for people."""


def link(secret: bytes, previous_hash: str, chain: str, sequence: int, record: UsageRecord) -> str:
    """Returns the hash of a record at its position: HMAC-SHA-256 in hexadecimal."""
    text = "\x1f".join(str(part) for part in (previous_hash, chain, sequence, *astuple(record)))
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


class Chain:
    """The end of one chain, to which records are appended."""

    def __init__(self, secret: bytes, name: str) -> None:
        self._secret, self.name = secret, name
        self._last = FIRST_HASH
        self._sequence = 0

    def append(self, record: UsageRecord) -> ChainedRecord:
        """Returns the record with its position and its hash."""
        self._sequence += 1
        self._last = link(self._secret, self._last, self.name, self._sequence, record)
        return ChainedRecord(self.name, self._sequence, record, self._last)


def verify(secret: bytes, chained: Iterable[ChainedRecord], heads: Iterable[tuple[str, int, str]]) -> list[ChainBreak]:
    """Returns the first break of each chain that has one.

    chained: all records, in order within each chain. heads: each chain's name, length and last hash as stored separately.
    """
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
            breaks.setdefault(chain, ChainBreak(chain, length, "the chain does not end at its recorded length and hash"))
    return list(breaks.values())
