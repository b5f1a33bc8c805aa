"""Cache salts of tenants."""

from neox_serve.core.prefix_cache.salt import cache_salt

SECRET = b"s" * 32


def test_salt_is_equal_for_one_tenant_and_differs_between_tenants_and_secrets() -> None:
    assert cache_salt(SECRET, "a") == cache_salt(SECRET, "a")
    assert len({cache_salt(SECRET, "a"), cache_salt(SECRET, "b"), cache_salt(b"t" * 32, "a")}) == 3


def test_salt_does_not_reveal_the_tenant() -> None:
    assert "acme" not in cache_salt(SECRET, "acme")
    assert len(cache_salt(SECRET, "acme")) == 32
