"""Values that follow from settings."""

from pathlib import Path

import pytest

from neox_serve.settings import allows_anonymous, batch_folder, database_url, restore, secret_file
from neox_serve.settings.gateway import AccessSettings, GatewaySettings


@pytest.mark.parametrize(
    ("host", "allow_anonymous", "allowed"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("localhost", None, True),
        ("0.0.0.0", None, False),
        ("gateway.example", None, False),
        ("0.0.0.0", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_anonymous_callers_are_allowed_by_default_on_loopback_only(host: str, allow_anonymous: bool | None, allowed: bool) -> None:
    assert allows_anonymous(AccessSettings(allow_anonymous=allow_anonymous), GatewaySettings(host=host)) is allowed


def test_paths_default_to_the_state_folder() -> None:
    settings = restore({"state_folder": "/state"})
    assert database_url(settings) == "sqlite:////state/neox-serve.db"
    assert secret_file(settings) == Path("/state/secret")
    assert batch_folder(settings) == "/state/batch"


def test_configured_paths_take_precedence_over_the_state_folder() -> None:
    access = {"database_url": "sqlite:///other.db", "secret_file": "/secret"}
    settings = restore({"state_folder": "/state", "access": access, "batch": {"folder": "s3://bucket/jobs"}})
    assert database_url(settings) == "sqlite:///other.db"
    assert secret_file(settings) == Path("/secret")
    assert batch_folder(settings) == "s3://bucket/jobs"
