"""The format of API keys and what is stored of them.

A key is `nxs_<key id>_<secret>`. The secret has 256 random bits, so it cannot be guessed and one round of SHA-256 is enough to store it.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

PREFIX = "nxs"
"""First part of every key."""
MAX_CHARACTERS = 128
"""Longer texts are rejected without being parsed."""

_KEY = re.compile(r"nxs_([0-9a-f]{16})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key. Times are seconds since the epoch."""

    key_id: str
    tenant: str
    secret_hash: str
    """SHA-256 of the secret, hexadecimal."""
    created_s: float
    expires_s: float | None = None
    """None if the key never expires."""
    revoked_s: float | None = None
    """When the key stops working; in the future for a rotated key that still works."""
    label: str = ""

    def usable(self, now_s: float) -> bool:
        """Returns whether the key works now. After a rotation, the old key works until its time of revocation."""
        return all(end_s is None or now_s < end_s for end_s in (self.expires_s, self.revoked_s))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A newly created key."""

    key_id: str
    text: str
    """The complete key, shown to its owner once and not stored."""
    secret_hash: str
    """As in ApiKey."""

    def __repr__(self) -> str:
        return f"NewKey({self.key_id})"


def new_key(random_bytes: Callable[[int], bytes]) -> NewKey:
    """Creates a key. random_bytes: a source of random bytes, such as `secrets.token_bytes`."""
    key_id, secret = random_bytes(8).hex(), random_bytes(32).hex()
    return NewKey(key_id, f"{PREFIX}_{key_id}_{secret}", hash_of(secret))


def hash_of(secret: str) -> str:
    """Returns the hash of a secret that is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(text: str) -> tuple[str, str] | None:
    """Returns the key id and the secret, or None if the text is not a key."""
    match = _KEY.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    return (match[1], match[2]) if match else None


def matches(key: ApiKey, secret: str) -> bool:
    """Returns whether the secret belongs to the key, in constant time."""
    return hmac.compare_digest(key.secret_hash, hash_of(secret))
