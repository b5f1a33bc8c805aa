"""API keys: how they look, and what is kept of them.

A key is `nxs_<key id>_<secret>`. The secret has 256 random bits, so one round of SHA-256 is enough to keep it: there is nothing to guess.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

PREFIX = "nxs"
MAX_CHARACTERS = 128
"""A longer text is no key of ours, and is not looked at."""

_KEY = re.compile(r"nxs_([0-9a-f]{16})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. Times are seconds since the epoch; expires_s None: never. secret_hash: SHA-256, hexadecimal."""

    key_id: str
    tenant: str
    secret_hash: str
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None
    label: str = ""

    def usable(self, now_s: float) -> bool:
        """Whether it opens anything now. A rotated key is revoked in the future: both work until then."""
        return all(end_s is None or now_s < end_s for end_s in (self.expires_s, self.revoked_s))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. text: what its owner is told, once."""

    key_id: str
    text: str
    secret_hash: str

    def __repr__(self) -> str:
        return f"NewKey({self.key_id})"


def new_key(random_bytes: Callable[[int], bytes]) -> NewKey:
    """A key from random bytes, such as those of `secrets.token_bytes`."""
    key_id, secret = random_bytes(8).hex(), random_bytes(32).hex()
    return NewKey(key_id, f"{PREFIX}_{key_id}_{secret}", hash_of(secret))


def hash_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(text: str) -> tuple[str, str] | None:
    """Key id and secret of a text; None where it is no key."""
    match = _KEY.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    return (match[1], match[2]) if match else None


def matches(key: ApiKey, secret: str) -> bool:
    """Whether the secret is the key's, in a time that does not depend on where they differ."""
    return hmac.compare_digest(key.secret_hash, hash_of(secret))
