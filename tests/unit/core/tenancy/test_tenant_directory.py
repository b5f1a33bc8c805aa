"""Credentials and the tenants they belong to."""

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.api_keys import ApiKey, new_key
from neox_serve.core.tenancy.tenant_directory import Principal, TenantDirectory
from neox_serve.core.tenancy.tenants import PriorityClass, Role, Tenant

MADE = new_key(lambda count: b"\x07" * count)
KEY = ApiKey(MADE.key_id, "acme", MADE.secret_hash, 0.0, expires_s=100.0)
ACME = Tenant("acme")
DIRECTORY = TenantDirectory(
    {"acme": ACME, "off": Tenant("off", enabled=False)}, {KEY.key_id: KEY}, {"acme.example": "acme", "off.example": "off"}
)


def refused(directory: TenantDirectory, text: str, now_s: float) -> str:
    with pytest.raises(ServeError) as caught:
        directory.authenticate_key(text, now_s)
    assert caught.value.reason is Reason.UNAUTHENTICATED
    return caught.value.message


def test_valid_key_authenticates_its_tenant() -> None:
    assert DIRECTORY.authenticate_key(MADE.text, 99.0) == Principal(ACME, f"key:{KEY.key_id}", frozenset({Role.TENANT}))


def test_unknown_wrong_and_expired_keys_get_the_same_error() -> None:
    wrong = MADE.text[:-1] + ("0" if MADE.text[-1] != "0" else "1")
    texts = {refused(DIRECTORY, text, 99.0) for text in (wrong, "nxs_" + "0" * 16 + "_" + "0" * 64, "", "x" * 10_000)}
    assert texts == {refused(DIRECTORY, MADE.text, 100.0)}
    assert MADE.text not in texts.pop()


def test_credential_of_a_disabled_tenant_is_refused() -> None:
    with pytest.raises(ServeError):
        DIRECTORY.authenticate_certificate(("off.example",))


def test_certificate_authenticates_by_any_of_its_names() -> None:
    known = DIRECTORY.authenticate_certificate(("unknown", "acme.example"))
    assert known is not None
    assert known.tenant is ACME
    assert DIRECTORY.authenticate_certificate(("unknown",)) is None


def test_caller_stays_valid_until_its_key_ends_or_its_tenant_is_disabled() -> None:
    caller = DIRECTORY.authenticate_key(MADE.text, 1.0)
    assert DIRECTORY.is_still_valid(caller, 99.0)
    assert not DIRECTORY.is_still_valid(caller, 100.0)
    assert not TenantDirectory({"acme": ACME}).is_still_valid(caller, 1.0)
    assert not TenantDirectory({"acme": Tenant("acme", enabled=False)}, DIRECTORY.keys).is_still_valid(caller, 1.0)


def test_class_above_the_ceiling_becomes_the_ceiling() -> None:
    tenant = Tenant("t", class_ceiling=PriorityClass.DEFAULT)
    assert tenant.allowed_class(PriorityClass.SYSTEM) is PriorityClass.DEFAULT
    assert tenant.allowed_class(PriorityClass.BULK) is PriorityClass.BULK
