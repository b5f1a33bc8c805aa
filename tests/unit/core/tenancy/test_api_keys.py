"""API keys: the stored part grants no access; only the complete key does."""

import secrets

from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.tenancy.api_keys import ApiKey, matches, new_key, parse


def kept(secret_hash: str, expires_s: float | None = None, revoked_s: float | None = None) -> ApiKey:
    return ApiKey("0" * 16, "acme", secret_hash, 0.0, expires_s, revoked_s)


def test_new_key_parses_and_matches_its_stored_hash() -> None:
    made = new_key(secrets.token_bytes)
    parsed = parse(made.text)
    assert parsed is not None
    key_id, secret = parsed
    assert key_id == made.key_id
    assert matches(kept(made.secret_hash), secret)


def test_secret_is_neither_stored_nor_printed() -> None:
    made = new_key(secrets.token_bytes)
    secret = made.text.rsplit("_", 1)[1]
    assert secret not in made.secret_hash
    assert secret not in repr(made)


@given(st.text(max_size=200))
def test_other_texts_do_not_parse_as_keys(text: str) -> None:
    assert parse(text) is None


@given(st.integers(0, 63), st.sampled_from("0123456789abcdef"))
def test_key_with_one_character_changed_does_not_match(position: int, character: str) -> None:
    made = new_key(lambda count: bytes(range(count)))
    secret = made.text.rsplit("_", 1)[1]
    changed = secret[:position] + character + secret[position + 1 :]
    assert matches(kept(made.secret_hash), changed) is (changed == secret)


def test_key_is_usable_until_it_expires_or_is_revoked() -> None:
    assert kept("").usable(1e12)
    assert kept("", expires_s=10.0).usable(9.9)
    assert not kept("", expires_s=10.0).usable(10.0)
    assert not kept("", expires_s=10.0, revoked_s=5.0).usable(6.0)
